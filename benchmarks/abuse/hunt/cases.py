"""Requests that once kept a worker busy for seconds to minutes, as large as a request may be."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from benchmarks.abuse.bad_pictures import chunk
from benchmarks.abuse.hunt.bodies import WHOLE, Body
from benchmarks.abuse.hunt.files import save, scene


def v1(file: bytes, count: int, *, explain: bool = False, **options: object) -> Body:
    """So many instances of one file."""
    instance = json.dumps({"data": base64.b64encode(file).decode(), **options})
    count = min(count, (WHOLE - 40) // (len(instance) + 1))
    return Body(f'{{"instances": [{",".join([instance] * count)}]}}'.encode(), "application/json", explain=explain)


def raw(file: bytes) -> Body:
    """A file by itself."""
    return Body(file)


def grey(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    """The start of an uncompressed TIFF of 8-bit grey; `more` are further entries, or others in place of these."""
    entries = {256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1), 262: (262, 3, 1, 1)}
    entries |= {273: (273, 4, 1, 8), 277: (277, 3, 1, 1), 278: (278, 4, 1, height)} | {each[0]: each for each in more}
    body = b"".join(struct.pack("<HHII", *each) for each in sorted(entries.values()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def strips(count: int) -> bytes:
    """One column, one row a strip, all in the same place."""
    return grey(1, count, (273, 3, count, 110), (278, 3, 1, 1)) + b"\x08\0" * count


def profiles(size: int) -> bytes:
    """A PNG of 64 x 64 with so many bytes of colour profiles, each of which unpacks to 1 MB."""
    plain = save(scene("flat", 64, 64, "L"), "PNG")
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20), 9))
    return plain[:33] + profile * (size // len(profile)) + plain[33:]


def run_length(side: int, row: bytes) -> bytes:
    """A run-length encoded BMP with the same runs in each row."""
    data = row * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + head + bytes(1024) + data


def jpeg_with(*segments: tuple[int, bytes], side: int = 64, tail: bytes = b"", scans: int = 0) -> bytes:
    """A JPEG with these segments at its beginning, so many scans more, and `tail` before its end."""
    plain = save(scene("flat", side, side, "RGB"), "JPEG", progressive=scans > 0)
    scan = plain[plain.rfind(b"\xff\xda") : -2]
    made = b"".join(struct.pack(">BBH", 255, marker, len(body) + 2) + body for marker, body in segments)
    return plain[:2] + made + plain[2:-2] + scan * scans + tail + plain[-2:]


def index(tags: int) -> bytes:
    """The index of a file of several pictures, whose values all are the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + each, 5, tags, 0) for each in range(tags))
    return b"MPF\0II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4)


def keys(count: int) -> Body:
    """An object of so many keys, none of which is known."""
    return Body(("{" + ",".join(f'"k{each}":0' for each in range(count)) + "}").encode(), "application/json")


def zeros(side: int) -> Body:
    """A tensor of zeros as a JSON list."""
    row = "[" + ",".join(["0"] * side) + "]"
    channel = "[" + ",".join([row] * side) + "]"
    return Body(f"[{channel},{channel},{channel}]".encode(), "application/json")


CASES: dict[str, Callable[[], Body]] = {
    "64 TIFFs of 199,000 strips": lambda: v1(strips(60_000), 64),
    "64 TIFFs of 20,000 strips": lambda: v1(strips(20_000), 64),
    "PNG filled with colour profiles": lambda: raw(profiles(30 << 20)),
    "4 run-length BMPs of 49 megapixels": lambda: v1(run_length(7_000, b"\1\5\0\0"), 4),
    "4 BMPs of the most runs": lambda: v1(run_length(1_400, b"\1\5" * 1_400 + b"\0\0"), 4),
    "JPEG filled with markers": lambda: raw(jpeg_with(tail=b"\xff\1" * (15 << 20))),
    "JPEG filled with 0xff": lambda: raw(jpeg_with(tail=b"\xff" * (30 << 20))),
    "JPEG filled with tables": lambda: raw(jpeg_with(*[(0xDB, bytes(65) * 1_000)] * 480)),
    "4 JPEGs of 49 megapixels and 100 scans": lambda: v1(jpeg_with(side=7_000, scans=90), 4),
    "TIFF of 4,000,000 fractions": lambda: raw(grey(1, 1, (282, 5, 3_900_000, 122)) + bytes(31_200_000)),
    "64 JPEGs with an index of 1,500 tags": lambda: v1(jpeg_with((0xE2, index(1_500))), 64),
    "4 PNGs of 49 megapixels": lambda: v1(save(scene("flat", 7_000, 7_000, "RGB"), "PNG"), 4),
    "64 columns of 700 pixels": lambda: v1(save(scene("flat", 1, 700, "RGB"), "PNG"), 64),
    "64 plain pictures, 10 overlays each": lambda: v1(
        save(Image.new("RGB", (1_600, 1_600)), "PNG"), 64, explain=True, overlay=True, opacity=0, top_k=5
    ),
    "64 pictures, contrast, 5 targets": lambda: v1(
        save(scene("flat", 99, 99, "RGB"), "PNG"), 64, explain=True, method="contrast", top_k=5
    ),
    "JSON of empty lists": lambda: Body(b"[" + b"[]," * (WHOLE // 3 - 2) + b"[]]", "application/json"),
    "JSON of keys": lambda: keys(2_400_000),
    "a tensor of 5.6 megapixels in JSON": lambda: zeros(2_360),
}
"""By what they are."""
