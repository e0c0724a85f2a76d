"""BMP: run lengths, decoded to the pixels that Pillow makes, several times as fast: it goes byte by byte, pixel by pixel."""

from __future__ import annotations

from typing import Any, cast

from PIL import Image, ImageFile

from camserve.core.errors import RequestError
from camserve.pictures.bounds.work import Effort

MAX_RUNS = 1_000_000
"""Runs of one picture, each of which takes up to a microsecond, the interpreter lock held. A screen of 8 megapixels has fewer."""

DECODER = "camserve_runs"

_COMPRESSION_AT, _RLE = 30, (1, 2)
_BYTES = [bytes((value,)) for value in range(256)]
_PAIRS = [bytes((value >> 4, value & 15)) for value in range(256)]
_HIGH, _LOW = bytes(value >> 4 for value in range(256)), bytes(value & 15 for value in range(256))


def check(data: bytes | bytearray) -> Effort:
    """Count what decoding takes: as many runs as the file can hold, where it is run-length encoded."""
    packed = int.from_bytes(data[_COMPRESSION_AT : _COMPRESSION_AT + 4], "little") in _RLE
    return Effort(parts=min(MAX_RUNS, len(data) // 2) // 12 if packed else 0)  # so many runs take as long as a part of a header


def use_decoder(picture: Image.Image) -> None:
    """Have a BMP that is open, and not decoded yet, decoded by `RunDecoder` where it is run-length encoded."""
    tiles = cast(list[Any], getattr(picture, "tile", []))
    for place, tile in enumerate(tiles):
        if tile[0] == "bmp_rle":
            tiles[place] = tile._replace(codec_name=DECODER) if hasattr(tile, "_replace") else (DECODER, *tile[1:])


class RunDecoder(ImageFile.PyDecoder):
    """Pillow's `BmpRleDecoder` for one picture, with the same pixels."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:  # noqa: ARG002
        """Decode all pixels; raises 400 `InvalidImage` for more than `MAX_RUNS` runs, ValueError where pixels are missing."""
        file: Any = self.fd
        start = file.tell()
        pixels = unpack(file.read(), start, self.state.xsize, self.state.ysize, nibbles=bool(self.args[1]))
        self.set_as_raw(bytes(pixels), "L" if self.mode in {"1", "L"} else "P", (0, self.args[-1]))
        return -1, 0


def unpack(source: bytes, start: int, width: int, height: int, *, nibbles: bool) -> bytearray:
    """Unpack run lengths (RLE8, or RLE4 where `nibbles`), bottom row first; fewer pixels where they end early.

    Args:
        start: where `source` begins in the file, whose even places pixels in absolute mode are aligned to.

    Raises:
        RequestError: 400 `InvalidImage`, there are more than `MAX_RUNS`.
    """
    pixels, total = bytearray(), width * height
    at = column = runs = 0
    while len(pixels) < total and at + 1 < len(source):
        count, value = source[at], source[at + 1]
        at += 2
        runs += 1
        if runs > MAX_RUNS:
            raise RequestError(400, "InvalidImage", f"data: expected a BMP picture of at most {MAX_RUNS:,} runs, got more")
        if count:
            count = max(0, min(count, width - column))
            pixels += (_PAIRS[value] * ((count + 1) // 2))[:count] if nibbles else _BYTES[value] * count
            column += count
        elif value == 0:
            pixels += bytes(-len(pixels) % width)
            column = 0
        elif value == 1:
            break
        elif value == 2:  # a step to the right and up
            if at + 1 >= len(source):
                break
            pixels += bytes(min(total - len(pixels), source[at] + source[at + 1] * width))
            at += 2
            column = len(pixels) % width
        else:
            wanted = min(total - len(pixels), value)
            taken = source[at : at + ((wanted + 1) // 2 if nibbles else wanted)]
            at += len(taken)
            pixels += _split(taken)[:wanted] if nibbles else taken
            if len(taken) < ((wanted + 1) // 2 if nibbles else wanted):
                break
            column += value
            at += (start + at) % 2
    return pixels


def _split(taken: bytes) -> bytearray:
    """Return the two pixels in each byte."""
    halves = bytearray(2 * len(taken))
    halves[::2], halves[1::2] = taken.translate(_HIGH), taken.translate(_LOW)
    return halves


Image.register_decoder(DECODER, RunDecoder)
