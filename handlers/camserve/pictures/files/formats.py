"""Formats of picture files: which one a file has, by its first bytes, and what its header says beyond what Pillow reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

NAMES: Mapping[str, str] = MappingProxyType(
    {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF", "tiff": "TIFF", "bmp": "BMP"}
)
"""The formats that are opened by default: the name in the configuration, and the one in messages."""

ALL_NAMES: Mapping[str, str] = MappingProxyType({**NAMES, "avif": "AVIF", "heic": "HEIC", "dicom": "DICOM"})
"""All formats that may be opened."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]|MM\*\x00|II\x00\*",
    "BMP": rb"BM",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(?:hei|hev|mif|msf)",
    "ICO": rb"\x00\x00\x01\x00",
    "CUR": rb"\x00\x00\x02\x00",
    "ICNS": rb"icns",
    "PPM": rb"P[1-7fF][\s#]",
    "PSD": rb"8BPS",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "DDS": rb"DDS ",
    "QOI": rb"qoif",
    "OpenEXR": rb"v/1\x01",
    "gzip": rb"\x1f\x8b",
    "ZIP": rb"PK\x03\x04",
    "XML or SVG": rb"\s*<(?:\?xml|svg)",
}
"""Those that are opened, and others that people send: a refusal names them."""

_ANY = re.compile(b"|".join(b"(%s)" % pattern for pattern in _SIGNATURES.values()), re.DOTALL)
_NAME_OF = tuple(_SIGNATURES)
_LONGEST = 32
_PREAMBLE = 132
"""Bytes before a DICOM file's tags, the last four of them its mark."""
_EXTENTS = re.compile(rb"ispe\0{4}(.{4})(.{4})", re.DOTALL)


def sniff(data: bytes | bytearray) -> str | None:
    """Return the name of a file's format by its first bytes, as messages spell it; None if it is unknown."""
    if data[_PREAMBLE - 4 : _PREAMBLE] == b"DICM":
        return "DICOM"
    match = _ANY.match(data, 0, _LONGEST)
    return _NAME_OF[match.lastindex - 1] if match and match.lastindex else None


def find_missing(formats: Iterable[str]) -> str:
    """Say what the formats of a configuration need that is not there; "" where nothing is missing."""
    from PIL import features  # noqa: PLC0415 parsers of requests do without Pillow

    if "avif" in formats and not features.check("avif"):
        return "avif needs Pillow 11.3 or newer, built with libavif"
    for name, module, package in (("heic", "pillow_heif", "pillow-heif"), ("dicom", "pydicom", "pydicom")):
        if name in formats and find_spec(module) is None:
            way = f"pip install 'camserve[{name}]' where the model is served, or name it in the archive's --requirements"
            return f"{name} needs {package}, which is not installed: {way}"
    return ""


def read_heif_size(data: bytes | bytearray) -> tuple[int, int]:
    """Return the largest (width, height) that an AVIF's or HEIC's boxes give (`ispe`, ISO/IEC 23008-12); (0, 0) without any."""
    sizes = [(int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")) for match in _EXTENTS.finditer(data)]
    return max(sizes, key=math.prod, default=(0, 0))


def is_picture(data: bytes | bytearray) -> bool:
    """Return True if the file starts like one of a format that is opened."""
    return sniff(data) in ALL_NAMES.values()


def read_webp_size(data: bytes | bytearray) -> tuple[int, int]:
    """Return (width, height) of a WebP's canvas, from its first chunk (RFC 9649, section 2); (0, 0) if it is cut off."""
    chunk, bits = bytes(data[12:16]), int.from_bytes(data[21:25], "little")
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
