"""Run-length encoded BMP: Pillow's pixels, in a fraction of its time."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
import pytest
from PIL import BmpImagePlugin, Image

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.bounds import bmp
from camserve.pictures.decode import open_picture

CONFIG = Config()


def packed(width: int, height: int, body: bytes, bits: int = 8, gap: int = 0) -> bytes:
    """A run-length encoded BMP with these runs, `gap` bytes behind its palette."""
    colours = 1 << bits
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, {8: 1, 4: 2}[bits], len(body), 0, 0, colours, colours)
    palette = b"".join(bytes((level, 255 - level, level // 2, 0)) for level in range(colours))
    start = 14 + len(head) + len(palette) + gap
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + bytes(gap) + body


def runs(draw: random.Random, width: int, bits: int) -> bytes:
    """Runs of every kind, right and wrong ones."""
    made = b""
    for _ in range(draw.randint(1, 60)):
        kind = draw.random()
        if kind < 0.5:
            made += bytes((draw.randint(1, 2 * width), draw.randrange(256)))
        elif kind < 0.7:
            made += b"\0\0"
        elif kind < 0.85:
            count = draw.randint(3, 40)
            size = (count + 1) // 2 if bits == 4 else count
            made += bytes((0, count)) + draw.randbytes(size + size % 2 - (draw.random() < 0.1))
        else:
            made += bytes((0, 2, draw.randrange(width), draw.randrange(3)))
    return made + draw.choice([b"", b"\0\1", b"\0\2", b"\0\2\1", b"\0"])


def pixels(data: bytes) -> np.ndarray | None:
    """What Pillow's own decoder makes of it; None where it refuses it."""
    try:
        with Image.open(io.BytesIO(data), formats=["BMP"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError):
        return None


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gap", [0, 1])
def test_every_kind_of_run_becomes_pillows_pixels(bits: int, gap: int) -> None:
    """And what it refuses is refused."""
    draw = random.Random(bits + gap)
    opened = 0
    for _ in range(300):
        width, height = draw.randint(1, 20), draw.randint(1, 12)
        data = packed(width, height, runs(draw, width, bits), bits, gap)
        expected = pixels(data)
        if expected is None:
            with pytest.raises(RequestError, match="cannot be decoded"):
                open_picture(data, CONFIG)
        else:
            assert np.array_equal(np.asarray(open_picture(data, CONFIG)), expected)
            opened += 1
    assert opened > 50


def test_lines_that_end_early_are_filled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow fills them pixel by pixel: 29 kB for 49 megapixels took nine seconds, the interpreter lock held."""
    monkeypatch.setattr(BmpImagePlugin.BmpRleDecoder, "decode", lambda *_: pytest.fail("Pillow decodes it"))

    picture = open_picture(packed(3_000, 2_000, b"\1\5\0\0" * 2_000 + b"\0\1"), CONFIG)

    assert np.asarray(picture)[:, 0].tolist() == [[2, 250, 5]] * 2_000
    assert not np.asarray(picture)[:, 1:, 0].any()


def test_runs_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its time, also those that hold no pixel."""
    monkeypatch.setattr(bmp, "MAX_RUNS", 1_000)
    row = b"\1\7" * 100 + b"\0\0"

    assert open_picture(packed(100, 9, row * 9), CONFIG).size == (100, 9)
    with pytest.raises(RequestError) as caught:
        open_picture(packed(100, 10, row * 10), CONFIG)
    assert (caught.value.kind, "at most 1,000 runs" in caught.value.message) == ("InvalidImage", True)
