"""Grammars of picture files, with what costs a decoder: each makes a file of a recipe."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.abuse.bad_pictures import chunk
from benchmarks.abuse.hunt.grammar import Recipe

LIMIT = 24 << 20
"""Bytes of a file: what is left of 32 MiB of a request in base64."""


@lru_cache(maxsize=32)
def scene(kind: str, width: int, height: int, mode: str) -> Image.Image:
    """A picture that compresses well, badly or not at all."""
    draw = np.random.default_rng(0)
    if kind == "flat":
        return Image.new("RGB", (width, height), (9, 99, 199)).convert(mode)
    small = draw.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
    if kind == "smooth":
        return Image.fromarray(small).resize((width, height)).convert(mode)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def size(recipe: Recipe, most: int = 20_000_000) -> tuple[int, int]:
    """Width and height of up to so many pixels, square or one line."""
    pixels = recipe.number("pixels", 64, most)
    shape = recipe.choice("shape", ("square", "column", "row"))
    side = {"square": int(pixels**0.5), "column": 1 + pixels // 60_000, "row": min(60_000, pixels)}[shape]
    return max(1, side), max(1, min(65_000, pixels // max(1, side)))


def save(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of Pillow's format."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def directory(recipe: Recipe, fixed: Mapping[int, tuple[int, int, int]], order: str = "<", base: int = 0) -> bytes:
    """A TIFF header and a directory of these tags, and of many others, whose values share the bytes behind it."""
    entries = dict(fixed)
    kind, count = recipe.choice("tag type", (5, 3, 7, 2, 4, 12, 10, 1)), recipe.number("tag count", 1, 300_000)
    first = recipe.choice("first tag", (282, 40_000, 33_432, 320, 700, 34_665, 274))
    for each in range(recipe.number("tags", 0, 60_000)):
        entries.setdefault(min(65_535, first + each), (kind, count, 8))
    body = b"".join(struct.pack(order + "HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, min(65_535, len(entries)))
    filling = b"\0\1\0\3\0\7\0\1" * (recipe.number("filling", 1, 1_000_000) // 8)
    return head + body + struct.pack(order + "I", recipe.choice("next", (0, 8, 9))) + filling[: LIMIT - base]


def exif(recipe: Recipe) -> bytes:
    """An EXIF block, or none."""
    return b"Exif\0\0" + directory(recipe, {274: (3, 1, 6)} if recipe.flag("turned") else {}) if recipe.flag("exif") else b""


def jpeg(recipe: Recipe) -> bytes:
    """Scans, segments, tables, fill bytes, restarts, and what application segments hold."""
    width, height = size(recipe)
    mode = recipe.choice("mode", ("RGB", "L", "CMYK"))
    options = {"quality": recipe.choice("quality", (75, 100)), "progressive": recipe.flag("progressive")}
    options |= {"subsampling": recipe.choice("subsampling", (0, 2))} if mode == "RGB" else {}
    plain = save(scene(recipe.choice("scene", ("flat", "smooth", "noise")), width, height, mode), "JPEG", **options)
    marker = recipe.choice("marker", (0xFE, 0xDB, 0xC4, 0xED, 0xE1, 0xE2, 0xC0, 0xDD, 0xDA))
    unit = recipe.choice("unit", (b"8BIM" + bytes(8), b"\0" + bytes(64), b"\x10" + bytes(16), b"ICC_PROFILE\0\1\1", b"\0"))
    start = {
        0xED: b"Photoshop 3.0\0",
        0xC0: plain[plain.find(b"\xff\xc0") + 4 :][:6],
        0xE1: b"Exif\0\0II*\0",
        0xE2: b"ICC_PROFILE\0\1\1",
    }
    body = (start.get(marker, b"") + unit * recipe.number("units", 0, 5_000))[:65_000]
    segment = struct.pack(">BBH", 255, marker, len(body) + 2) + body
    extra = segment * min(recipe.number("segments", 0, 4_000), LIMIT // len(segment))
    block = exif(recipe)
    extra += struct.pack(">BBH", 255, 0xE1, len(block[:65_000]) + 2) + block[:65_000] if block else b""
    scan = plain[plain.rfind(b"\xff\xda") : -2]
    scans = scan * min(recipe.number("scans", 0, 120), LIMIT // len(scan))
    flood = recipe.choice("flood", (b"\xff", b"\xff\0", b"\xff\1", b"\xff\xd0", b"\0")) * recipe.number("floods", 0, 8_000_000)
    place = recipe.choice("place", ("head", "tail"))
    return (
        plain[:2]
        + extra
        + (flood if place == "head" else b"")
        + plain[2:-2]
        + scans
        + (flood if place == "tail" else b"")
        + plain[-2:]
    )


def png(recipe: Recipe) -> bytes:
    """Depths, filters, passes, chunks of every kind, and streams that unpack to more than the picture."""
    width, height = size(recipe)
    depth, colour, samples = recipe.choice(
        "kind", ((8, 2, 3), (8, 6, 4), (16, 2, 3), (16, 6, 4), (8, 0, 1), (1, 0, 1), (8, 3, 1), (16, 0, 1))
    )
    stride = (width * depth * samples + 7) // 8
    filling = bytes([recipe.choice("filter", (0, 1, 2, 3, 4, 7))]) + _filling(recipe, stride)
    packer = zlib.compressobj(recipe.choice("level", (9, 1, 0)), zlib.DEFLATED, 15, 9, recipe.choice("strategy", (0, 2, 3, 4)))
    lines = filling * height
    packed = packer.compress(lines[: 200 << 20]) + packer.flush()
    packed += recipe.choice("behind", (b"", zlib.compress(bytes(20 << 20), 9))) * recipe.number("more", 0, 40)
    packed = packed[:LIMIT]
    step = max(1, len(packed) // recipe.number("parts", 1, 30_000))
    pixels = b"".join(chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    kind = recipe.choice(
        "other", (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"fcTL", b"acTL", b"eXIf", b"tRNS", b"PLTE", b"abCd", b"IDAT")
    )
    unpacked = zlib.compress(bytes(recipe.number("unpacked", 1, 1 << 20)), 9)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0", b"tEXt": b"Raw profile type exif\0\nexif\n9\n"}.get(
        kind, b""
    )
    other = chunk(kind, head + (unpacked if kind in {b"zTXt", b"iTXt", b"iCCP"} else bytes(recipe.number("length", 0, 100_000))))
    others = other * min(recipe.number("others", 0, 30_000), LIMIT // len(other))
    block = exif(recipe)[6:]
    others += chunk(b"eXIf", block) if block else b""
    before = recipe.flag("before")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, recipe.flag("interlaced")))
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + header + palette + (others if before else b"") + pixels + (b"" if before else others) + chunk(b"IEND", b"")


def _filling(recipe: Recipe, stride: int) -> bytes:
    kind = recipe.choice("filling kind", ("zeros", "steps", "noise"))
    if kind == "noise":
        return np.random.default_rng(1).bytes(stride)
    return bytes(stride) if kind == "zeros" else (bytes(range(256)) * (stride // 256 + 1))[:stride]


def gif(recipe: Recipe) -> bytes:
    """Blocks before the first frame, codes of every length, frames of every size."""
    width, height = size(recipe)
    width, height = min(width, 65_535), min(height, 65_535)
    screen = recipe.choice("screen", ((width, height), (1, 1)))
    palette = 0xF7 if recipe.flag("palette") else 0
    label = recipe.choice("label", (0xFE, 0xFF, 0xF9, 0x01))
    block = bytes((recipe.number("block", 1, 255),))
    extension = b"!" + bytes((label,)) + (block + b"N" * block[0]) * recipe.number("blocks", 0, 30_000) + b"\0"
    extensions = extension * min(recipe.number("extensions", 0, 30_000), LIMIT // len(extension))
    junk = b"\1" * recipe.number("junk", 0, 1_000_000)
    kind = recipe.choice("codes", ("real", "clear", "literal", "noise"))
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x40 * recipe.flag("interlaced"))
    if kind == "real":
        plain = save(scene(recipe.choice("scene", ("flat", "noise")), width, height, "L"), "GIF")
        data = plain[plain.find(b",\0\0\0\0") + 10 :]
    else:
        codes = {"clear": b"\x00\x03\x0c\x30\xc0" * 51, "literal": bytes(255), "noise": np.random.default_rng(2).bytes(255)}[kind]
        data = (
            bytes((recipe.choice("bits", (8, 2, 11)),))
            + (b"\xff" + codes[:255]) * min(recipe.number("data", 1, 90_000), LIMIT // 256)
            + b"\0"
        )
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, palette, 0, 0) + (bytes(768) if palette else b"")
    return (head + extensions[:LIMIT] + junk + frame + data + frame * recipe.number("frames", 0, 1_000))[:LIMIT] + b";"


def tiff(recipe: Recipe) -> bytes:
    """Strips and tiles, compressions, planes, depths, fill orders, and directories as `directory` makes them."""
    if recipe.flag("real"):
        width, height = size(recipe)
        compression = recipe.choice(
            "compression", ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "lzma", "zstd", "packbits", "group4", "group3")
        )
        mode = "1" if "group" in compression else recipe.choice("mode", ("RGB", "L", "CMYK", "RGBA", "LAB"))
        mode = "RGB" if compression == "jpeg" and mode not in {"RGB", "L", "CMYK"} else mode
        image = scene(recipe.choice("scene", ("flat", "smooth", "noise")), width, height, "RGB" if mode == "LAB" else mode)
        image = Image.merge("LAB", image.split()) if mode == "LAB" else image
        options = {"tiffinfo": {278: recipe.number("rows", 1, height)}}
        return save(image, "TIFF", compression=compression, **options)
    order = recipe.choice("order", ("<", ">"))
    width, height = recipe.number("width", 1, 60_000), recipe.number("height", 1, 60_000)
    pieces = recipe.number("pieces", 1, 30_000)
    samples = recipe.choice("samples", (1, 3, 4))
    entries: dict[int, tuple[int, int, int]] = {256: (4, 1, width), 257: (4, 1, height)}
    for tag, value in (
        (262, recipe.choice("photometric", (1, 2, 5, 6, 8, 3))),
        (277, samples),
        (258, recipe.choice("depth", (8, 1, 16))),
    ):
        entries[tag] = (3, 1, value << 16 * (order == ">"))
    entries[259] = (3, 1, recipe.choice("packing", (1, 5, 8, 32773, 2, 3, 4, 7, 34925, 50000)) << 16 * (order == ">"))
    entries[284] = (3, 1, recipe.choice("planes", (1, 2)) << 16 * (order == ">"))
    entries[266] = (3, 1, recipe.choice("fill order", (1, 2)) << 16 * (order == ">"))
    entries[278] = (4, 1, max(1, height // pieces))
    if recipe.flag("tiled"):
        entries |= {322: (4, 1, recipe.number("tile width", 1, 9_000)), 323: (4, 1, recipe.number("tile length", 1, 9_000))}
    entries[324 if 322 in entries else 273] = (4, pieces, 8)
    entries[325 if 322 in entries else 279] = (4, pieces, 8)
    return directory(recipe, entries, order)


def webp(recipe: Recipe) -> bytes:
    """Lossy and lossless, animations, unknown chunks."""
    width, height = size(recipe, 8_000_000)
    width, height = min(width, 16_383), min(height, 16_383)
    image = scene(recipe.choice("scene", ("flat", "smooth", "noise")), width, height, recipe.choice("mode", ("RGB", "RGBA")))
    options: dict[str, Any] = {
        "lossless": recipe.flag("lossless"),
        "quality": recipe.choice("quality", (0, 80, 100)),
        "method": 0,
    }
    block = exif(recipe)
    plain = save(image, "WEBP", **options, **({"exif": block} if block else {}))
    kind = recipe.choice("other", (b"abcd", b"ANMF", b"EXIF", b"ICCP", b"XMP "))
    other = kind + struct.pack("<I", recipe.number("length", 0, 64) & ~1) + bytes(recipe.number("length", 0, 64) & ~1)
    tail = other * min(recipe.number("others", 0, 1_000_000), LIMIT // len(other))
    body = plain[12:]
    if body[:4] != b"VP8X" and recipe.flag("extended"):
        flags = recipe.choice("flags", (0, 2, 0x3E))
        body = (
            b"VP8X" + struct.pack("<II", 10, flags) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + body
        )
    body += tail
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(recipe: Recipe) -> bytes:
    """Run lengths of every kind, and plain rows."""
    bits = recipe.choice("bits", (8, 4))
    width, height = recipe.number("width", 1, 7_000), recipe.number("height", 1, 7_000)
    unit = recipe.choice(
        "unit", (b"\1\5", b"\1\5\0\0", b"\0\0", b"\0\2\0\0", b"\0\2\1\0", b"\xff\7", b"\0\3abc\0", b"\0\xff" + bytes(256))
    )
    data = unit * min(recipe.number("runs", 1, 12_000_000), LIMIT // len(unit)) + recipe.choice("end", (b"", b"\0\1"))
    colours = recipe.choice("colours", (1 << bits, 65_536, 2))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, {8: 1, 4: 2}[bits], len(data), 0, 0, colours, 0)
    start = 14 + len(head) + 4 * colours
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + bytes(4 * colours) + data


FILES: dict[str, Callable[[Recipe], bytes]] = {"JPEG": jpeg, "PNG": png, "GIF": gif, "TIFF": tiff, "WebP": webp, "BMP": bmp}
"""By the format's name."""
