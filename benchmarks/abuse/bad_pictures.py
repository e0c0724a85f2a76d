"""Bad pictures."""

from __future__ import annotations

import binascii
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.abuse.case import BAD, LARGE, OK, Case, Draw, sent

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "RGBA", "P", "1", "LA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("RGB", "L", "P"),
    "TIFF": ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F"),
    "BMP": ("RGB", "L", "P", "1"),
}


def picture(draw: random.Random, form: str, size: tuple[int, int] | None = None, **options: Any) -> bytes:
    """A small picture in one of the format's modes."""
    width, height = size or (draw.randint(1, 90), draw.randint(1, 90))
    pixels = np.frombuffer(draw.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    mode = draw.choice(MODES[form])
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    if form == "JPEG":
        options = {"progressive": draw.random() < 0.3, "quality": draw.randint(1, 95), **options}
    if form == "TIFF" and mode not in ("1", "F"):
        options = {"compression": draw.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]), **options}
    if form == "GIF" and draw.random() < 0.3:
        options = {"save_all": True, "append_images": [image.convert("L").rotate(90)], **options}
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def mutated(form: str) -> Draw:
    """Damage in a whole picture's file."""

    def made(draw: random.Random) -> Case:
        file = bytearray(picture(draw, form))
        for _ in range(draw.choice([1, 1, 2, 5, 20])):
            _damage(draw, file, form)
        if form == "PNG" and draw.random() < 0.7:
            file = bytearray(_mended(bytes(file)))
        return sent(draw, bytes(file), OK, BAD, LARGE)

    return made


def _damage(draw: random.Random, file: bytearray, form: str) -> None:
    at = draw.randrange(len(file)) if draw.random() < 0.6 else draw.randrange(min(len(file), 60))
    length = draw.choice([1, 2, 4, draw.randint(1, 200)])
    kind = draw.randrange(8)
    if kind == 0:
        file[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        file[at : at + length] = draw.randbytes(len(file[at : at + length]))
    elif kind == 2:
        file[at : at + length] = bytes([draw.choice([0, 0xFF, 0x7F, 0x80])]) * len(file[at : at + length])
    elif kind == 3:
        del file[max(at, 4) :]
    elif kind == 4:
        del file[max(at, 4) : at + length]
    elif kind == 5:
        file[at:at] = draw.randbytes(length)
    elif kind == 6:
        other = picture(draw, draw.choice([form, *MODES]))
        file[max(at, 4) :] = other[draw.randrange(len(other)) :]
    else:
        file[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 65536, 10**6]))


def _mended(file: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them, so that decoders look at it."""
    found, at = file[:8], 8
    while at + 12 <= len(file):
        length = int.from_bytes(file[at : at + 4], "big")
        found += chunk(file[at + 4 : at + 8], file[at + 8 : at + 8 + length]) if at + 12 + length <= len(file) else file[at:]
        at += 12 + length
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", binascii.crc32(kind + data))


def png(width: int, height: int, data: bytes, *others: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this header and this compressed data, whether they fit or not; `others` come before the data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(20_000_000), 9)


def bomb(draw: random.Random) -> Case:
    """Small files that ask for much: by their headers, or by what unpacks."""
    width, height = (draw.choice([8000, 30_000, 65_535, 2**31 - 1]) for _ in range(2))
    small = zlib.compress(bytes(1000))
    tiff = (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", 3)
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, width), (257, height), (273, 8)))
    )
    vp8x = (
        b"VP8X"
        + struct.pack("<II", 10, 0)
        + struct.pack("<I", min(width, 2**24) - 1)[:3]
        + struct.pack("<I", min(height, 2**24) - 1)[:3]
    )
    jpeg = picture(draw, "JPEG")
    start = jpeg.find(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.find(b"\xff\xc2")
    made = [
        png(width, height, small),
        png(width, height, ZEROS),
        png(60, 60, zlib.compress(bytes(60 * 181), 9), chunk(b"iCCP", b"x\0\0" + ZEROS)),
        png(60, 60, zlib.compress(bytes(60 * 181), 9), *[chunk(b"zTXt", b"x\0\0" + ZEROS)] * 4),
        png(60, 60, ZEROS),
        b"GIF89a" + struct.pack("<HHBBB", min(width, 65_535), min(height, 65_535), 0xF7, 0, 0) + bytes(768) + b",",
        tiff + struct.pack("<I", 0) + bytes(100),
        b"RIFF" + struct.pack("<I", 22 + len(small)) + b"WEBP" + vp8x + small,
        b"BM"
        + struct.pack(
            "<IIIIiiHHIIIIII", 2000, 0, 54, 40, width, -height if draw.random() < 0.5 else height, 1, 24, 0, 0, 0, 0, 0, 0
        ),
        jpeg[: start + 5] + struct.pack(">HH", 65_535, 65_535) + jpeg[start + 9 :],
    ]
    return sent(draw, draw.choice(made), OK, BAD, LARGE)


def odd_shape(draw: random.Random) -> Case:
    """Pictures of one pixel, one line, one column: right ones."""
    long = draw.randint(2, 20_000)
    size = draw.choice([(1, 1), (1, long), (long, 1), (2, long), (long, 3), (1, 20_000), (20_000, 1)])
    form = draw.choice([form for form in MODES if form != "WEBP" or max(size) < 16_384])
    file = io.BytesIO()
    Image.new("RGB", size, tuple(draw.randbytes(3))).save(file, form)
    return sent(draw, file.getvalue(), OK)


def exif(draw: random.Random) -> Case:
    """Good pictures with absurd EXIF blocks."""
    order = draw.choice("<>")
    entries = b"".join(
        struct.pack(
            order + "HHII",
            draw.choice([0x0112, 0x8769, 0x8825, draw.randrange(65_536)]),
            draw.randrange(14),
            draw.choice([0, 1, 2**32 - 1]),
            draw.randrange(2**32),
        )
        for _ in range(draw.randint(0, 40))
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", draw.choice([8, 8, 8, 0, 4, 2**31]))
    count = struct.pack(order + "H", draw.choice([len(entries) // 12, 65_535, 0]))
    block = head + count + entries + struct.pack(order + "I", draw.choice([0, 8, 2**32 - 1]))
    block = draw.choice([block, block, draw.randbytes(draw.randint(0, 300)), b"", block[: draw.randint(0, len(block))]])
    form = draw.choice(["JPEG", "PNG", "WEBP"])
    return sent(draw, picture(draw, form, exif=b"Exif\0\0" + block), OK)


def text_chunks(draw: random.Random) -> Case:
    """Good PNGs with hostile text, profiles and physical sizes."""
    info = PngImagePlugin.PngInfo()
    for _ in range(draw.randint(1, 20)):
        info.add_text("k" * draw.randint(1, 79), "\x1b]0;\r\n<script>" * draw.randint(0, 2000), zip=draw.random() < 0.5)
    return sent(draw, picture(draw, "PNG", pnginfo=info), OK)


def appended(draw: random.Random) -> Case:
    """A good picture with something else behind it."""
    form = draw.choice(list(MODES))
    tails = [
        b"PK\x03\x04",
        b"<script>",
        b"%PDF-1.4",
        b'{"data": 1}',
        b"\0" * 5000,
        picture(draw, "GIF"),
        b"\xff\xd9",
        draw.randbytes(500),
    ]
    return sent(draw, picture(draw, form) + draw.choice(tails), OK, BAD)


def not_a_picture(draw: random.Random) -> Case:
    """Other formats, noise, nothing."""
    heads = [
        b"%PDF-1.7\n",
        b"8BPS",
        b"<svg ",
        b"%!PS",
        b"P6 9 9 255\n",
        b"\0\0\1\0",
        b"PK\x03\x04",
        b"\x7fELF",
        b"qoif",
        b"\0\0\0\x1cftypavif",
    ]
    heads += [
        b"\0\0\0\x18ftypheic",
        b"DDS ",
        b"icns",
        b"\xff\x0a",
        b"v/1\x01",
        b"FORM",
        b"GIMP",
        b"",
        b"BM",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"MM\0*",
    ]
    return sent(draw, draw.choice(heads) + draw.randbytes(draw.choice([0, 1, 30, 3000])), BAD, LARGE)


def good_picture() -> bytes:
    """The same whole PNG each time."""
    return picture(random.Random(0), "PNG", (80, 64))


CATEGORIES: dict[str, Draw] = {
    **{f"mutated {form}": mutated(form) for form in MODES},
    "decompression bombs": bomb,
    "odd shapes": odd_shape,
    "absurd EXIF": exif,
    "hostile text in PNG": text_chunks,
    "pictures with a tail": appended,
    "not a picture": not_a_picture,
}
