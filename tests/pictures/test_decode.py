"""Bytes to an RGB picture: every format and mode, and hostile files."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from contextlib import ExitStack
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camserve.core.config import FORMATS, Config
from camserve.core.errors import RequestError
from camserve.pictures.bounds.reading import LENIENT, silence_decoders
from camserve.pictures.decode import check_limits, measure, open_picture

CONFIG = Config()
SMALL = Config(max_pixels=1_000_000, exif=True)
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}


def scene(width: int = 40, height: int = 30) -> Image.Image:
    """A picture in which no two places look alike."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x * 6, y * 8, (x * y) % 256], axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def in_mode(mode: str) -> Image.Image:
    """The scene in any mode, half of it half transparent where the mode can say so."""
    if mode == "LAB":
        return Image.merge("LAB", scene().split())
    picture = scene()
    if mode in {"LA", "RGBA"}:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture.convert(mode)


def pixels(picture: Image.Image) -> np.ndarray:
    """[height, width, 3]."""
    assert picture.mode == "RGB"
    return np.asarray(picture)


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    """A PNG written by hand."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, int], body: bytes) -> bytes:
    """A little-endian TIFF written by hand; `body` starts at byte 8."""
    start = 8 + len(body)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def refusal(data: bytes | bytearray, config: Config = CONFIG) -> RequestError:
    """The error of a picture that is not opened; its message must suit a client."""
    with pytest.raises(RequestError) as caught:
        open_picture(data, config)
    error = caught.value
    assert error.message.startswith("data: expected ")
    assert ", got " in error.message
    assert not re.search(r"0x[0-9a-f]{6}|<|/|Traceback", error.message)
    assert error.message.isascii()
    assert error.message.isprintable()
    assert error.__context__ is None or error.__suppress_context__
    return error


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_format_and_mode_becomes_rgb_as_pillow_converts_it(kind: str, mode: str) -> None:
    """Each mode that a format can hold gives Pillow's own conversion; RGB comes through as it was decoded."""
    data = encoded(in_mode(mode), kind)
    with Image.open(io.BytesIO(data)) as stock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(stock.convert("RGB"))
    assert np.array_equal(pixels(open_picture(data, CONFIG)), expected)
    assert np.array_equal(pixels(open_picture(bytearray(data), CONFIG)), expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_is_unchanged(kind: str) -> None:
    """The pixels are those that were saved."""
    assert np.array_equal(pixels(open_picture(encoded(scene(), kind), CONFIG)), np.asarray(scene()))


def test_a_cmyk_jpeg_shows_its_colours() -> None:
    """A CMYK JPEG of pure cyan is cyan, not its negative."""
    data = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert np.abs(pixels(open_picture(data, CONFIG)).astype(int) - (0, 255, 255)).max() <= 3


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    """Alpha is dropped, the palette's colour stays, and Pillow's warning about it reaches nobody."""
    picture = scene().quantize(16)
    data = encoded(picture, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(pixels(open_picture(data, CONFIG)), np.asarray(picture.convert("RGB")))


GREY16 = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65407, 65535]], dtype=np.uint16)
GREY8 = [0, 0, 1, 1, 127, 128, 254, 255, 255]  # v / 257, rounded: 128 / 257 = 0.498, 65407 / 257 = 254.502


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "compressed tiff"])
def test_16_bit_grey_is_scaled_by_257(kind: str) -> None:
    """White is white: 65535 becomes 255, and values in between are rounded."""
    if kind == "png":
        data = png(9, 1, 16, 0, b"\0" + GREY16.astype(">u2").tobytes())
    elif kind == "big-endian tiff":
        data = encoded(Image.frombytes("I;16B", (9, 1), GREY16.astype(">u2").tobytes()), "TIFF")
        assert data.startswith(b"MM")
    else:
        options = {"compression": "tiff_lzw"} if kind == "compressed tiff" else {}
        data = encoded(Image.fromarray(GREY16), "TIFF", **options)
    assert pixels(open_picture(data, CONFIG))[0].tolist() == [[value] * 3 for value in GREY8]


def test_12_bit_grey_is_scaled_by_its_own_white() -> None:
    """A TIFF of 12 bits: 4095 is white, 2048 (128 after rounding 127.53) in the middle."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    data = tiff(tags, b"\xff\xf8\x00")  # 0xfff, 0x800
    assert pixels(open_picture(data, CONFIG))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_numbers_are_refused(mode: str) -> None:
    """A float or a 32-bit integer does not say what is white: black pictures would be the answer to a guess."""
    error = refusal(encoded(Image.new(mode, (4, 4), 1), "TIFF"))
    assert (error.status, error.kind) == (400, "InvalidImage")
    assert "8 or 16 bits a channel" in error.message


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    """Animations, and TIFFs of several pages, show what they start with."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(open_picture(data, CONFIG)), np.asarray(frames[0]))


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied_only_if_configured(kind: str, orientation: int) -> None:
    """All eight orientations; without `exif` the pixels stay as stored, as in the stock handler."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), kind, exif=exif)
    stored = pixels(open_picture(data, CONFIG))
    assert stored.shape == (30, 40, 3)
    turned = pixels(open_picture(data, Config(exif=True)))
    assert np.array_equal(turned, TURNED[orientation](stored))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_survives_the_conversion_to_rgb(kind: str) -> None:
    """A grey picture is turned too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene().convert("L"), kind, exif=exif)
    assert open_picture(data, Config(exif=True)).size == (30, 40)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0six\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"Exif\0\0" + bytes(range(256)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_absurd_exif_block_does_not_fail_the_picture(kind: str, block: bytes) -> None:
    """Empty, cut off, circular, of the wrong type, out of range, no EXIF at all: the picture is shown as stored."""
    assert open_picture(encoded(scene(), kind, exif=block), Config(exif=True)).size == (40, 30)


@pytest.mark.parametrize("kind", MODES)
def test_a_truncated_picture_is_refused_wherever_it_ends(kind: str) -> None:
    """Cut before its middle it is a 400; cut later it is a 400 or, where nothing is missed, a picture."""
    data = encoded(scene(200, 150), kind)
    for end in np.linspace(1, len(data) - 1, 60, dtype=int).tolist():
        if end < len(data) // 2:
            assert refusal(data[:end]).status == 400
        else:
            opened_or_refused(data[:end])
    error = refusal(data[: len(data) // 2])
    assert error.kind == "InvalidImage"
    assert re.search(rf"complete {kind} picture, got {len(data) // 2} bytes", error.message, re.IGNORECASE)


def opened_or_refused(data: bytes) -> bool:
    """Whether it opened; anything but an RGB picture or a 400 or 413 fails the test."""
    try:
        picture = open_picture(data, SMALL)
    except RequestError as error:
        if error.status not in {400, 413}:
            raise
        return False
    pixels(picture)
    return True


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A copy with a few bits flipped, bytes set to extremes, or a stretch repeated, mostly near the header."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(chance.choice([min(64, len(out)), len(out)]))
        action = chance.randrange(4)
        if action == 0:
            out[place] ^= 1 << chance.randrange(8)
        elif action == 1:
            out[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif action == 2:
            out[place : place + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\x01\0"])
        else:
            out[place:place] = out[place : place + chance.randint(1, 40)]
    return resealed(bytes(out)) if chance.random() < 0.7 else bytes(out)


def resealed(data: bytes) -> bytes:
    """A PNG with its checksums made right again, so that the damage gets past them; anything else as it is."""
    out, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(out)


SEEDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [("RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}), ("CMYK", {})],
    "PNG": [("P", {"transparency": 3}), ("RGBA", {"dpi": (72, 72)})],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True})],
    "GIF": [("P", {}), ("P", {"save_all": True, "append_images": [Image.new("P", (40, 30), 7)], "transparency": 3})],
    "TIFF": [("RGB", {}), ("P", {"compression": "tiff_lzw"}), ("CMYK", {"compression": "tiff_adobe_deflate"})],
    "BMP": [("RGB", {}), ("P", {})],
}


@pytest.mark.parametrize("kind", MODES)
def test_damaged_pictures_never_raise_anything_else(kind: str, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    """Hundreds of mutations of each format: a picture or a RequestError; in a worker not a word on stderr or in the log."""
    silence_decoders()
    chance = random.Random(kind)
    seeds = [encoded(in_mode(mode), kind, **options) for mode, options in SEEDS[kind]]
    opened = sum(opened_or_refused(mutated(chance.choice(seeds), chance)) for _ in range(400))
    assert 5 < opened < 395, "the mutations reach both sides"
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


BROKEN_TIFF = """
import logging, sys
from PIL import Image
level = logging.getLogger("PIL").level
from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.bounds.reading import LENIENT, silence_decoders
from camserve.pictures.decode import open_picture
assert logging.getLogger("PIL").level == level == logging.NOTSET
if "silenced" in sys.argv:
    silence_decoders()
try:
    open_picture(sys.stdin.buffer.read(), Config())
except RequestError as error:
    print(error.kind)
"""


@pytest.mark.parametrize(("argument", "is_silent"), [("", False), ("silenced", True)])
def test_decoders_fall_silent_when_asked_and_not_by_an_import(argument: str, is_silent: bool) -> None:
    """A notebook's Pillow and libtiff go on telling what they find; a process of its own, for this is for good."""
    data = bytearray(encoded(scene(), "TIFF", compression="tiff_adobe_deflate"))
    data[60:64] = b"\xff" * 4
    ran = subprocess.run(
        [sys.executable, "-c", BROKEN_TIFF, argument],
        input=bytes(data),
        env={"PYTHONPATH": "handlers"},
        capture_output=True,
        check=True,
    )
    assert ran.stdout == b"InvalidImage\n"
    assert (ran.stderr == b"") is is_silent


def webp_header(kind: bytes) -> bytes:
    """A WebP that claims the largest size its header can: only the header is there."""
    body = {
        b"VP8X": struct.pack("<II", 10, 0) + b"\xff" * 6,
        b"VP8L": struct.pack("<I", 10) + b"\x2f\xff\xff\xff\x0f" + b"\0" * 5,
        b"VP8 ": struct.pack("<I", 10) + b"\x30\1\0\x9d\x01\x2a\xff\x3f\xff\x3f",
    }[kind]
    return b"RIFF" + struct.pack("<I", 4 + 4 + len(body)) + b"WEBP" + kind + body


BOMBS = {
    "png": (png(60_000, 60_000, body=b"\0" * 1000), "60000 x 60000"),
    "gif": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;", "65535 x 65535"),
    "bmp": (b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0), "60000 x 60000"),
    "tiff": (tiff({256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1}, b"\0"), "60000 x 60000"),
    "webp": (webp_header(b"VP8X"), "16777216 x 16777216"),
    "webp, lossless": (webp_header(b"VP8L"), "16384 x 16384"),
    "webp, lossy": (webp_header(b"VP8 "), "16383 x 16383"),
    "tiff tile": (
        tiff({256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 8}, b"\x78\x9c" * 4),
        "30000 x 30000 in one TIFF tile",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("limit", [None, 1000, 2**40])
def test_a_bomb_is_refused_by_its_header(bomb: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """413 with the size it claims, before a pixel is decoded, whatever Pillow's own limit is; that limit stays."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    data, claimed = BOMBS[bomb]
    error = refusal(data)
    assert (error.status, error.kind) == (413, "ImageTooLarge")
    assert error.message == f"data: expected at most 50000000 pixels, got {claimed}"
    with pytest.raises(RequestError) as caught:
        check_limits(data, CONFIG)
    assert caught.value.message == error.message
    assert limit == Image.MAX_IMAGE_PIXELS


def test_check_limits_passes_what_is_for_somebody_else_to_refuse() -> None:
    """What is small passes, and what is no picture, damaged, or of a format that is not opened."""
    for data in (encoded(scene(), "PNG"), encoded(scene(), "PNG")[:20], b"BM", b"%PDF-1.4", b"", b"anything"):
        check_limits(data, CONFIG)
    check_limits(BOMBS["png"][0], Config(formats=("jpeg",)))


@pytest.mark.parametrize("kind", MODES)
def test_measuring_reads_the_header_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded for it; of another format, of damaged files and of none nothing is decoded later either."""
    data = encoded(scene(50, 30), kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert measure(data, CONFIG).pixels == measure(bytearray(data), CONFIG).pixels == 50 * 30
    assert measure(data, Config(max_pixels=10)).pixels == 50 * 30
    assert measure(data, Config(formats=("gif",) if kind != "GIF" else ("bmp",))).pixels == 0
    assert [measure(each, CONFIG).pixels for each in (data[:9], b"", b"nothing", b"%PDF-1.7")] == [0, 0, 0, 0]


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_pixels_of_a_bomb_are_those_that_it_claims(bomb: str) -> None:
    """Canvas, or TIFF tile where that is larger."""
    data, claimed = BOMBS[bomb]
    width, height = re.findall(r"\d+", claimed)
    assert measure(data, CONFIG).pixels == int(width) * int(height)


def parts(kind: str, count: int) -> bytes:
    """A good picture with so many parts that say nothing."""
    data = encoded(scene(), kind)
    if kind == "PNG":
        return data[:33] + chunk(b"abCd", b"") * count + data[33:]
    if kind == "JPEG":
        return data[:20] + b"\xff\xfe\0\x02" * count + data[20:]
    start = data.index(b",\0\0\0\0")
    return data[:start] + b"!\xfe\x01c\0" * count + data[start:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_picture_of_millions_of_parts_is_refused(kind: str) -> None:
    """Pillow reads each in Python: 32 MiB of them take ten seconds, in which no other request is answered."""
    assert open_picture(parts(kind, 900), CONFIG).size == (40, 30)
    many = parts(kind, 1_000_000)
    error = refusal(many)
    assert measure(many, CONFIG).pixels == 0
    assert (error.status, error.kind) == (400, "InvalidImage")
    assert "at most 2,000" in error.message


def test_a_jpeg_of_many_exif_blocks_is_refused() -> None:
    """Pillow joins them, copying all for each: 8 MiB of them took eight seconds, 32 MiB two minutes."""
    data = encoded(scene(), "JPEG")
    block = b"\xff\xe1\0\x09Exif\0\0x"
    assert open_picture(data[:20] + block * 100 + data[20:], CONFIG).size == (40, 30)
    error = refusal(data[:20] + block * 101 + data[20:])
    assert (error.status, error.kind) == (400, "InvalidImage")
    assert measure(data[:20] + block * 101 + data[20:], CONFIG).pixels == 0


def test_the_limit_is_the_configurations_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly `max_pixels` is opened even where Pillow would refuse it, one row more is not."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    config = Config(max_pixels=40 * 30)
    assert open_picture(encoded(scene(), "PNG"), config).size == (40, 30)
    assert refusal(encoded(scene(40, 31), "PNG"), config).kind == "ImageTooLarge"
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_jpeg_that_redraws_itself_is_refused() -> None:
    """More scans than 100: a few kilobytes could otherwise keep a worker busy for hours."""
    data = encoded(scene(), "JPEG", progressive=True)
    assert data.count(b"\xff\xda") == 10
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    assert open_picture(data[:-2] + scan * 90 + data[-2:], CONFIG).size == (40, 30)
    error = refusal(data[:-2] + b"\xff\xfe\0\x04\xff\xd9" + scan * 91 + data[-2:])
    assert (error.status, error.kind) == (400, "InvalidImage")
    assert "at most 100 scans" in error.message


def test_bytes_that_only_look_like_scans_do_not_count() -> None:
    """A comment, and a film behind the picture's end as some cameras leave there, may hold the marker's bytes."""
    data = encoded(scene(), "JPEG", comment=b"\xff\xda" * 200) + b"\0\x02" + b"\xff\xda\0\x02" * 200
    assert open_picture(data, CONFIG).size == (40, 30)


def test_a_run_of_fill_bytes_is_passed_in_one_go() -> None:
    """Each byte of the run may begin a marker (ITU-T T.81, B.1.1.2): looked at to its end from each of them, it would take hours."""
    data = encoded(scene(), "JPEG")
    begun = time.process_time()
    assert "at most 100 scans" in refusal(data[:-2] + b"\xff" * 100_000 + b"\0" + b"\xff\xda\0\x02" * 101).message
    assert time.process_time() - begun < 20  # it was a minute
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert "at most 100 scans" in refusal(data[:-2] + (b"\xff" * 9 + scan) * 101).message


@pytest.mark.parametrize("kind", ["ICO", "PPM", "EPS", "PDF", "JPEG2000", "DDS", "ICNS", "PCX", "TGA", "SGI", "MSP"])
def test_other_formats_are_refused_unopened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow could open but the contract does not list never reaches a decoder."""
    data = encoded(scene(64, 64).convert("1" if kind == "MSP" else "RGB"), kind)
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened"))
    error = refusal(data)
    assert (error.status, error.kind) == (400, "UnsupportedFormat")
    assert "a picture in JPEG, PNG, WebP, GIF, TIFF or BMP, got " in error.message


def test_no_other_decoder_gets_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken PNG is not passed on to decoders that would take anything."""
    monkeypatch.setitem(Image.OPEN, "TRAP", (lambda *_: pytest.fail("tried"), None))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "TRAP"])
    assert refusal(png(0, 5)).kind == "InvalidImage"


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (b"8BPS\0\x01", "got PSD"),
        (b"\0\0\x01\0\x01\0", "got ICO"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "got HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "got AVIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "got EPS"),
        (b'<svg xmlns="x">', "got XML or SVG"),
        (b"P6\n4 4\n255\n", "got PPM"),
        (b"\x1f\x8b\x08\0\0", "got gzip"),
        (b"PK\x03\x04\x14\0", "got ZIP"),
        (b"hello world", 'got 11 bytes of no known format, which start with "hello world"'),
        (b"hello\nworld", "got 11 bytes of no known format, which start with 68 65 6c 6c 6f 0a 77 6f 72 6c 64"),
        (b"\xff", "got 1 byte of no known format, which start with ff"),
        (b"RIFF\0\0\0\0WAVEfmt ", "which start with 52 49 46 46 00 00 00 00 57 41 56 45"),
    ],
)
def test_the_refusal_names_what_came(data: bytes, came: str) -> None:
    """A known format by its name, anything else by its first bytes, escaped."""
    error = refusal(data)
    assert error.kind == "UnsupportedFormat"
    assert error.message.endswith(came)


@pytest.mark.parametrize("allowed", FORMATS)
def test_only_the_configured_formats_are_opened(allowed: str) -> None:
    """An archive may list fewer formats; the others are refused by name."""
    config = Config(formats=(allowed,))
    for kind in MODES:
        data = encoded(scene(), kind)
        if kind.lower() == allowed:
            assert open_picture(data, config).size == (40, 30)
        else:
            error = refusal(data, config)
            assert error.kind == "UnsupportedFormat"
            assert error.message.lower() == f"data: expected a picture in {allowed}, got {kind}".lower()


@pytest.mark.parametrize("data", [b"", bytearray()])
def test_no_bytes_are_no_image(data: bytes | bytearray) -> None:
    """An empty upload is told apart from a broken one."""
    assert (refusal(data).status, refusal(data).kind) == (400, "NoImage")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    """Zero width or height is a 400 in every format that can say so."""
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HH", *size) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", *size) + b"\0\x08\x01\0\0;"
    page = tiff({256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1}, b"\0")
    for data in (png(*size), bmp, gif, page):
        assert (refusal(data).status, refusal(data).kind) == (400, "InvalidImage")


def test_running_out_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryError passes through, for the group to be halved; Pillow's limit and the warnings are restored."""

    def fail(self: Image.Image) -> None:
        raise MemoryError

    filters = list(warnings.filters)
    limit = Image.MAX_IMAGE_PIXELS
    data = encoded(scene(), "PNG")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MemoryError):
        open_picture(data, CONFIG)
    assert warnings.filters == filters
    assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_that_decode_together_restore_pillows_state() -> None:
    """However their calls overlap, Pillow's limit and the warning filters are afterwards what they were before."""
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    data = encoded(scene().quantize(16), "PNG", transparency=bytes(range(16)))
    opened: list[tuple[int, int]] = []

    def work() -> None:
        for _ in range(50):
            opened.append(open_picture(data, CONFIG).size)  # noqa: PERF401 - each call by itself

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [(40, 30)] * 200
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


@pytest.mark.parametrize("limit", [10, None])
def test_a_picture_is_cropped_while_another_is_decoded(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow checks a crop's size against its limit, which it reads twice: between, decoding elsewhere leaves it of its kind."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    lines: list[int] = []
    inside = ExitStack()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name != "_decompression_bomb_check":
            return None
        if event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == 2:  # it has read the limit once
                inside.enter_context(LENIENT)
        return trace

    picture, before = scene(), sys.gettrace()
    with inside:
        sys.settrace(trace)
        try:
            cropped = picture.crop((0, 0, 3, 3))
        finally:
            sys.settrace(before)
        assert type(limit) is type(Image.MAX_IMAGE_PIXELS)
    assert cropped.size == (3, 3)
    assert len(lines) > 1
