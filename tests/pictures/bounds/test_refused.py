"""Files as no camera and no tool makes them, each a few bytes for seconds of a core, are refused before Pillow sees them."""

from __future__ import annotations

import binascii
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures import decode
from camserve.pictures.bounds import gif, ifd, jpeg, png, tiff
from camserve.pictures.decode import measure, open_picture

CONFIG = Config(exif=True)


def encoded(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    """A plain picture as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks before its pixels."""
    plain = encoded("PNG")
    made = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body)) for kind, body in chunks]
    return plain[:33] + b"".join(made) + plain[33:]


def jpeg_with(*segments: tuple[int, bytes], **options: Any) -> bytes:
    """A JPEG with these segments at its beginning."""
    plain = encoded("JPEG", **options)
    made = [struct.pack(">BBH", 255, marker, len(body) + 2) + body for marker, body in segments]
    return plain[:2] + b"".join(made) + plain[2:]


def directory(*entries: tuple[int, int, int, int], order: str = "<", at: int = 8) -> bytes:
    """A TIFF header and one directory at a place, of (tag, type, count, value)."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + _inline(order, *entry[1:]) for entry in entries)
    return head + struct.pack(order + "I", at) + bytes(at - 8) + struct.pack(order + "H", len(entries)) + body + bytes(4)


def _inline(order: str, kind: int, count: int, value: int) -> bytes:
    return struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)


def grey(width: int, height: int, *more: tuple[int, int, int, int], order: str = "<") -> bytes:
    """The start of an uncompressed TIFF of 8-bit grey; `more` entries replace those of the same tags."""
    entries = {256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1), 262: (262, 3, 1, 1)}
    entries |= {273: (273, 4, 1, 8), 277: (277, 3, 1, 1), 278: (278, 4, 1, height), 279: (279, 4, 1, width * height)}
    return directory(*sorted((entries | {each[0]: each for each in more}).values()), order=order)


def strips(count: int, order: str = "<") -> bytes:
    """A TIFF of one column and one row a strip, all in the same place."""
    head = grey(1, count, (273, 4, count, 122), (278, 4, 1, 1), (279, 4, count, 122 + 4 * count), order=order)
    return head + struct.pack(order + "I", 8) * count + struct.pack(order + "I", 1) * count


def mp_block(tags: int) -> bytes:
    """The index of a file of several pictures (MPF), whose values all are the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + each, 5, tags, 0) for each in range(tags))
    return b"MPF\0II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4)


def arithmetic() -> bytes:
    """A JPEG whose frame says that it is in arithmetic coding."""
    return encoded("JPEG", quality=90).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc9\0\x11\x08")


def in_tiff(data: bytes) -> bytes:
    """A JPEG in a TIFF."""
    head = grey(
        40, 30, (258, 3, 3, 122), (259, 3, 1, 7), (262, 3, 1, 6), (273, 4, 1, 128), (277, 3, 1, 3), (279, 4, 1, len(data))
    )
    return head + struct.pack("<HHH", 8, 8, 8) + data


PROFILE = b"x\0\0" + zlib.compress(bytes(1 << 20), 9)
FEW_TAGS = tuple((each, 3, 1, 7) for each in range(2000, 2000 + ifd.MAX_TAGS - 9))
SUB = (34665, 4, 1, 8 + 2 + 10 * 12 + 4)
GIF = encoded("GIF", mode="P")
GIF_HEAD = GIF.index(b",\0\0\0\0")

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "arithmetic coding": (arithmetic, "arithmetic coding"),
    "arithmetic coding in a TIFF": (lambda: in_tiff(arithmetic()), "arithmetic coding"),
    "scans in a TIFF": (lambda: in_tiff(encoded("JPEG")[:-2] + b"\xff\xda\0\x02" * jpeg.MAX_SCANS), "100 scans"),
    "segments": (lambda: jpeg_with(*[(0xE5, b"")] * jpeg.MAX_SEGMENTS), "2,000 segments"),
    "markers behind the scan": (lambda: encoded("JPEG")[:-2] + b"\xff\x01" * jpeg.MAX_SEGMENTS + b"\xff\xd9", "2,000 segments"),
    "fill bytes": (lambda: encoded("JPEG")[:-2] + b"\xff" * (jpeg.MAX_FILL + 2) + b"\xd9", "1,048,576 fill bytes"),
    "fill bytes behind an end that is none": (
        lambda: encoded("JPEG")[:-2] + b"\xff\xfe\0\4\xff\xd9" + b"\xff" * (jpeg.MAX_FILL + 2) + b"\xd9",
        "1,048,576 fill bytes",
    ),
    "fill bytes without an end": (lambda: encoded("JPEG")[:-2] + b"\xff" * (jpeg.MAX_FILL + 2), "1,048,576 fill bytes"),
    "resources": (lambda: jpeg_with((0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5_001)), "5,000 Photoshop resources"),
    "tables": (lambda: jpeg_with(*[(0xDB, bytes(65))] * 245), "16,384 bytes of quantisation tables"),
    "frames": (lambda: jpeg_with((0xC0, b"\x08\0\x1e\0\x28\3" + bytes(9))), "1 frame"),
    "tables behind an end that is none": (
        lambda: jpeg_with(*[(0xDB, bytes(65))] * 245)[:2] + b"\xff\xd9" + jpeg_with(*[(0xDB, bytes(65))] * 245)[2:],
        "16,384 bytes",
    ),
    "tables in a segment that is none": (
        lambda: b"\xff\xd8\xff\xf0\xff\xf0" + jpeg_with(*[(0xDB, bytes(65))] * 245)[2:],
        "16,384 bytes",
    ),
    "components": (lambda: encoded("JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc0\x04\x11"), "at most 773 bytes"),
    "fractions in EXIF": (
        lambda: jpeg_with((0xE1, b"Exif\0\0" + directory((282, 5, 2_001, 26)) + bytes(8 * 2_001))),
        "2,000 fractions",
    ),
    "tags in EXIF that share their bytes": (
        lambda: jpeg_with((0xE1, b"Exif\0\0" + directory(*[(each, 7, 60_000, 8) for each in range(900)]) + bytes(49_000))),
        "tags hold at most",
    ),
    "second profile": (lambda: png_with((b"iCCP", PROFILE), (b"iCCP", PROFILE)), "at most 1 colour profile"),
    "chunks": (lambda: png_with(*[(b"IDAT", b"")] * png.MAX_CHUNKS), "20,000 chunks"),
    "chunks without pixels": (lambda: png_with(*[(b"fcTL", bytes(26))] * png.MAX_OTHERS), "2,000 chunks without pixels"),
    "strips": (lambda: strips(tiff.MAX_PIECES + 1), "20,000 strips"),
    "strips that are not listed": (lambda: grey(1, 100_000, (278, 3, 1, 1)) + bytes(100_000), "20,000 strips"),
    "tiles": (lambda: grey(999, 999, (322, 3, 1, 1), (323, 3, 1, 2)) + bytes(10**6), "20,000 strips or tiles"),
    "strips that share their bytes": (
        lambda: (
            grey(1, 9, (273, 4, 9, 122), (278, 4, 1, 1), (279, 4, 9, 158))
            + struct.pack("<9I", *[0] * 9)
            + struct.pack("<9I", *[300_000] * 9)
            + bytes(300_000)
        ),
        "strips or tiles hold at most",
    ),
    "fractions": (lambda: grey(1, 1, (282, 5, 2_001, 134)) + bytes(8 * 2_001), "2,000 fractions"),
    "fractions, most significant byte first": (
        lambda: grey(1, 1, (282, 10, 2_001, 134), order=">") + bytes(8 * 2_001),
        "2,000 fractions",
    ),
    "fractions in EXIF of a TIFF": (
        lambda: grey(1, 1, SUB) + directory((33434, 5, 2_001, 200))[8:] + bytes(8 * 2_001 + 200),
        "2,000 fractions",
    ),
    "numbers": (lambda: grey(1, 1, (50_000, 3, 250_001, 134)) + bytes(2 * 250_001), "250,000 numbers"),
    "tags": (lambda: grey(1, 1, *FEW_TAGS, (60_000, 3, 1, 7)), "1,000 tags"),
    "blocks before the first frame": (
        lambda: GIF[:GIF_HEAD] + b"!\xff\x0bXMP DataXMP" + b"\x01x" * gif.MAX_BLOCKS + b"\0" + GIF[GIF_HEAD:],
        "20,000 blocks",
    ),
    "empty extensions": (lambda: GIF[:GIF_HEAD] + b"!\xf0\0" * (gif.MAX_BLOCKS + 1) + GIF[GIF_HEAD:], "20,000 blocks"),
    "blocks in comments": (
        lambda: GIF[:GIF_HEAD] + b"!\xfe" + b"\x01x" * 2_001 + b"\0" + GIF[GIF_HEAD:],
        "2,000 blocks in comments",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tool_makes_is_refused_before_pillow_sees_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is accepted; nor are its pixels counted by Pillow, which is where the seconds went."""
    make, words = REFUSED[name]
    monkeypatch.setattr(decode, "_read_header", lambda *_: pytest.fail("Pillow reads it"))

    with pytest.raises(RequestError) as caught:
        open_picture(make(), CONFIG)

    assert (caught.value.status, caught.value.kind) == (400, "InvalidImage")
    assert words in caught.value.message
    assert measure(make(), CONFIG).pixels == 0


def text(count: int) -> PngImagePlugin.PngInfo:
    """Texts as screenshots carry them."""
    info = PngImagePlugin.PngInfo()
    for each in range(count):
        info.add_text(f"note {each}", "words " * 500, zip=each % 2 == 0)
    return info


def exif() -> bytes:
    """EXIF with places, fractions and a maker's note of 50 kB."""
    block = Image.Exif()
    block[0x0110], block[0x0112], block[0x011A] = "Camera", 1, 72.0
    block.get_ifd(0x8769)[0x927C] = bytes(50_000)
    block.get_ifd(0x8825)[2] = (51.0, 28.0, 3.7)
    return block.tobytes()


def mpo() -> bytes:
    """Two pictures in one file, as telephones write them."""
    file = io.BytesIO()
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 15))
    first.save(file, "MPO", save_all=True, append_images=[second])
    return file.getvalue()


def animated(kind: str) -> bytes:
    """Sixty frames."""
    frames = [Image.new("L", (40, 30), level) for level in range(60)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def tagged() -> ImageFileDirectory_v2:
    """Tags as scanners and Photoshop write them: a resolution, texts, a large block of bytes."""
    tags = ImageFileDirectory_v2()
    tags[282], tags[270] = 300.0, "a description " * 50
    tags[37724] = bytes(300_000)
    tags.tagtype[37724] = 7
    return tags


def png_in_bytes() -> bytes:
    """A PNG whose pixels come a byte a chunk, as a well-known test picture's do."""
    plain = encoded("PNG")
    start = plain.index(b"IDAT") + 4
    body = plain[start : start + int.from_bytes(plain[start - 8 : start - 4], "big")]
    made = b"".join(
        b"\0\0\0\1IDAT" + body[at : at + 1] + struct.pack(">I", binascii.crc32(b"IDAT" + body[at : at + 1]))
        for at in range(len(body))
    )
    return plain[: start - 8] + made + plain[-12:]


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "progressive, with a profile in two parts and EXIF": lambda: encoded(
        "JPEG", progressive=True, icc_profile=bytes(90_000), exif=exif()
    ),
    "Photoshop's resources": lambda: jpeg_with(*[(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 60)] * 3),
    "several pictures": mpo,
    "a film behind the picture": lambda: encoded("JPEG") + b"\xff\xda\xff\x01" * 9_000,
    "padding behind the picture": lambda: encoded("JPEG") + b"\xff" * (2 << 20),
    "white in a segment": lambda: jpeg_with(*[(0xE5, b"\xff" * 65_000)] * 30),
    "CMYK": lambda: encoded("JPEG", mode="CMYK"),
    "text and a profile": lambda: encoded("PNG", pnginfo=text(60), icc_profile=bytes(200_000), exif=exif()),
    "16 bits": lambda: encoded("PNG", mode="I;16"),
    "chunks of one byte": png_in_bytes,
    "animated PNG": lambda: animated("PNG"),
    "animated GIF": lambda: animated("GIF"),
    "animated WebP": lambda: animated("WEBP"),
    "a comment": lambda: encoded("GIF", mode="P", comment=b"words " * 900),
    "one row a strip": lambda: strips(5_000),
    "one row a strip, most significant byte first": lambda: strips(5_000, ">"),
    "tags": lambda: encoded("TIFF", tiffinfo=tagged(), compression="tiff_lzw"),
    "JPEG in strips": lambda: encoded("TIFF", (300, 900), compression="jpeg"),
    "16-bit palette": lambda: grey(4, 4, (320, 3, 196_608, 134)) + bytes(2 * 196_608),
    "bi-level fax": lambda: encoded("TIFF", (900, 900), "1", compression="group4"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_cameras_and_tools_make_is_opened(name: str) -> None:
    """With the pixels that Pillow sees."""
    data = ACCEPTED[name]()
    with Image.open(io.BytesIO(data)) as picture:
        expected = (
            picture.convert("RGB")
            if picture.mode != "I;16"
            else picture.point(lambda level: level / 257).convert("L").convert("RGB")
        )
        if picture.mode == "I;16":
            assert open_picture(data, CONFIG).size == picture.size
            return
        assert np.array_equal(np.asarray(open_picture(data, CONFIG)), np.asarray(expected))


def test_the_index_of_several_pictures_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first is decoded; releases of Pillow before 13 take 21 s over 19 kB of it."""
    monkeypatch.setattr("PIL.JpegImagePlugin._getmp", lambda _: pytest.fail("Pillow reads it"))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile._getmp", lambda _: pytest.fail("Pillow reads it"))

    assert open_picture(jpeg_with((0xE2, mp_block(1_500))), CONFIG).size == (40, 30)
    assert open_picture(mpo(), CONFIG).size == (40, 30)


def test_values_that_are_cut_off_do_not_count() -> None:
    """Damaged EXIF promises megabytes: Pillow passes over it, and the picture is as good as ever."""
    block = b"Exif\0\0" + directory((282, 5, 2**31, 26), (283, 5, 9_999, 26), (305, 7, 2**32 - 1, 8))

    assert open_picture(jpeg_with((0xE1, block)), CONFIG).size == (40, 30)
