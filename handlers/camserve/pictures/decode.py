"""Bytes to an RGB picture. Pillow decodes, as in the stock handler."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import re
import struct
import threading
import warnings
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin, _imaging  # noqa: F401 - else Pillow imports every decoder it has

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.text import listed, shown

_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF", "tiff": "TIFF", "bmp": "BMP"}
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"RIFF....WEBP", "WebP"),
        (rb"GIF8[79]a", "GIF"),
        (rb"II[*+]\x00|MM\x00[*+]|MM\*\x00|II\x00\*", "TIFF"),
        (rb"BM", "BMP"),
        (rb"....ftypavi[fs]", "AVIF"),
        (rb"....ftyp(?:hei|hev|mif|msf)", "HEIC"),
        (rb"\x00\x00\x01\x00", "ICO"),
        (rb"\x00\x00\x02\x00", "CUR"),
        (rb"icns", "ICNS"),
        (rb"P[1-7fF][\s#]", "PPM"),
        (rb"8BPS", "PSD"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
        (rb"%PDF", "PDF"),
        (rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ", "JPEG 2000"),
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL"),
        (rb"DDS ", "DDS"),
        (rb"qoif", "QOI"),
        (rb"v/1\x01", "OpenEXR"),
        (rb"\x1f\x8b", "gzip"),
        (rb"PK\x03\x04", "ZIP"),
        (rb"\s*<(?:\?xml|svg)", "XML or SVG"),
    )
)
# What Pillow's decoders raise on damaged files; MemoryError is not a fault of the file and passes.
_FAULTS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(EOFError, RuntimeError, BufferError, struct.error, zlib.error, Image.DecompressionBombError),
)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_MAX_SCANS = 100
_MAX_PARTS, _MAX_BLOCKS = 200_000, 100
_MAX_RUNS = 1_000_000
"""Of a BMP's run-length encoding, each of two parts: about half a second."""
_TILE_WIDTH, _TILE_LENGTH, _BITS_PER_SAMPLE = 322, 323, 258
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A hostile file must not reach the log. Pillow logs some of what it finds in TIFF tags as errors, and libtiff, which
# Pillow is linked with, prints to stderr what Pillow raises anyway; where its functions are not to be found it stays so.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):
    _libtiff = ctypes.CDLL(_imaging.__file__)
    _libtiff.TIFFSetErrorHandler(None)
    _libtiff.TIFFSetWarningHandler(None)


class _Quiet:
    """While any thread is inside, Pillow neither warns nor limits sizes: `max_pixels` does that. Global state is restored."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


class _File(BytesIO):
    """A picture's bytes, as Pillow reads headers: part by part, in Python, and copying all EXIF blocks for each that follows."""

    parts = blocks = 0
    most = _MAX_PARTS

    def read(self, size: int | None = -1, /) -> bytes:
        """As `BytesIO`'s; 400 `InvalidImage` for a file of so many parts that they would keep the interpreter busy."""
        part = super().read(size)
        self.parts += 1
        self.blocks += part.startswith(b"Exif\0\0")
        if self.parts > self.most or self.blocks > _MAX_BLOCKS:
            most = f"{self.most} parts and {_MAX_BLOCKS} EXIF blocks"
            raise RequestError(400, "InvalidImage", f"data: expected a picture of at most {most}, got more")
        return part


def open_picture(data: bytes | bytearray, config: Config, origin: str = "") -> Image.Image:
    """The first frame of an encoded picture, decoded, in mode RGB.

    Red, green and blue of 8 bits come through as Pillow decodes them. 16-bit grey is scaled by 1/257 and rounded (12-bit grey
    of TIFF by 255/4095). Everything else is converted by Pillow, which drops alpha: TIFFs of LAB or YCbCr too, of which the
    stock handler takes lightness or luma for red. Pictures of 32-bit integers and of
    floats are refused, for they do not say what is black and what is white. EXIF orientation is applied if `config.exif`
    (Pillow itself always applies TIFF's); an EXIF block that cannot be read is ignored.

    Args:
        origin: how the bytes were received, which an error about them says (`after base64 decoding of 812 characters`).

    Raises:
        RequestError: 400 `NoImage` for no bytes; 400 `UnsupportedFormat` for a format that is not one of
            `config.formats`; 413 `ImageTooLarge` for more than `config.max_pixels`, before a pixel is decoded;
            400 `InvalidImage` for a picture that cannot be decoded.
    """
    if not data:
        raise RequestError(400, "NoImage", "data: expected a picture, got 0 bytes")
    name = _format(data, config, origin)
    try:
        with _QUIET:
            picture = _within_limits(data, name, config)
            picture.load()
            turn = _turn(picture) if config.exif else None
            picture = _to_rgb(picture)
            return picture if turn is None else picture.transpose(turn)
    except _FAULTS:
        message = f"data: expected a complete {name} picture, got {len(data)} bytes that cannot be decoded as one"
        raise RequestError(400, "InvalidImage", message) from None


def check_limits(data: bytes | bytearray, config: Config) -> None:
    """Refuses a picture that `open_picture` would refuse for the work that it is, by its header alone.

    What is no picture of `config.formats` passes: it is for somebody else to read, or to refuse.

    Raises:
        RequestError: 413 `ImageTooLarge` or 400 `InvalidImage`, as `open_picture`.
    """
    try:
        name = _format(data, config)
    except RequestError:
        return
    with contextlib.suppress(*_FAULTS), _QUIET:
        _within_limits(data, name, config)


def pixels_of(data: bytes | bytearray, config: Config) -> int:
    """How many pixels `open_picture` will decode, or one TIFF tile of it if that is more, by the header alone.

    0 for what it will not even begin to decode.
    """
    try:
        name = _format(data, config)
        if name == "WebP":
            return math.prod(_webp_size(data))
        with _QUIET:
            picture = _header(data, name)
            return max(math.prod(picture.size), math.prod(_tile(picture)))
    except (RequestError, *_FAULTS):
        return 0


def _within_limits(data: bytes | bytearray, name: str, config: Config) -> Image.Image:
    """The picture, not decoded yet; raises what `open_picture` does of one that is too large, or too much work."""
    if name == "WebP":
        check_pixels(_webp_size(data), config)  # Pillow allocates the canvas as soon as it opens the file
    picture = _header(data, name)
    check_pixels(picture.size, config)
    _check_layout(picture, data, config)
    return picture


def _header(data: bytes | bytearray, name: str) -> Image.Image:
    """The picture, not decoded yet."""
    file = _File(data)
    if name == "BMP":
        file.most += 2 * _MAX_RUNS
    return Image.open(file, formats=[name.upper()])


def _format(data: bytes | bytearray, config: Config, origin: str = "") -> str:
    """The name of the picture's format, by its first bytes, if it is one of those that are opened."""
    head = bytes(data[:32])
    name = next((name for pattern, name in _SIGNATURES if pattern.match(head)), None)
    accepted = [_NAMES[each] for each in config.formats]
    if name is not None and name in accepted:
        return name
    came = name
    if came is None:
        start = head[:12]
        text = shown(start) if start.isascii() and start.decode().isprintable() else start.hex(" ")
        came = f"{len(data)} {'byte' if len(data) == 1 else 'bytes'} of no known format, which start with {text}"
        if origin:
            came += f", {origin}"
    raise RequestError(400, "UnsupportedFormat", f"data: expected a picture in {listed(accepted)}, got {came}")


def _webp_size(data: bytes | bytearray) -> tuple[int, int]:
    """(width, height) of the canvas, from the first chunk (RFC 9649, section 2); (0, 0) for one that is cut off."""
    chunk, bits = bytes(data[12:16]), int.from_bytes(data[21:25], "little")
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def check_pixels(size: tuple[int, int], config: Config, what: str = "") -> None:
    """Raises 413 `ImageTooLarge` for a (width, height) of more than `config.max_pixels`; `what` ends the message."""
    width, height = size
    if width * height > config.max_pixels:
        message = f"data: expected at most {config.max_pixels} pixels, got {width} x {height}{what}"
        raise RequestError(413, "ImageTooLarge", message)


def _check_layout(picture: Image.Image, data: bytes | bytearray, config: Config) -> None:
    """Refuses small pictures that are much work to decode: huge TIFF tiles, and JPEGs that redraw each pixel often."""
    check_pixels(_tile(picture), config, " in one TIFF tile")
    # Counting the bytes of the marker is quick and never too low; only then is it worth finding the true ones.
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MAX_SCANS and _scans(data) > _MAX_SCANS:
        raise RequestError(400, "InvalidImage", f"data: expected a JPEG picture of at most {_MAX_SCANS} scans, got more")


def _tile(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of a TIFF's tiles; (0, 0) where there are none."""
    tags = getattr(picture, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _scans(data: bytes | bytearray) -> int:
    """The number of a JPEG's scans, at most one more than are allowed (ITU-T T.81, B.1.1 and B.2)."""
    scans, position = 0, 2
    while scans <= _MAX_SCANS and (found := _MARKER.search(data, position)):
        kind = found[1][0]
        position = found.end()
        if kind == 0xD9:
            break
        if kind not in {0x01, 0xD8}:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        scans += kind == 0xDA
    return scans


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What EXIF orientation asks for; only this tag is read, because other damaged tags must not matter."""
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except _FAULTS:
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return _grey16(picture).convert("RGB")
    if picture.mode in {"I", "F"}:
        message = "data: expected 8 or 16 bits a channel, got a picture of 32-bit numbers, whose white is not defined"
        raise RequestError(400, "InvalidImage", message)
    return picture.convert("RGB")


def _grey16(picture: Image.Image) -> Image.Image:
    """8-bit grey of grey with up to 16 bits, rounded, so that white is white."""
    bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    white = 2 ** bits[0] - 1
    table = (np.arange(65536).clip(max=white) * 255 + white // 2) // white
    return Image.fromarray(table.astype(np.uint8)[np.asarray(picture)])
