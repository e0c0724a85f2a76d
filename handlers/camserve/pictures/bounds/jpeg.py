"""JPEG (ITU-T T.81): coding, scans, segments, and what is in its application segments."""

from __future__ import annotations

import re

from camserve.pictures.bounds.ifd import check_exif
from camserve.pictures.bounds.work import Effort, RefusedError, refuse_above

MAX_SCANS = 100
"""Scans of one picture: cameras and tools write 1 to about 12, and each redraws every pixel."""

MAX_SEGMENTS = 2_000
"""Segments before the picture ends: a colour profile takes up to 255, extended metadata one for each 64 kB."""

MAX_JUNK = 10_000
"""Bytes between segments before the first scan, which Pillow passes over one by one: some tools fill up with a few."""

MAX_FILL = 1 << 20
"""Fill bytes in a row: libjpeg looks at all of them again for each 64 kB that come."""

MAX_TABLES = 16_384
"""Bytes of quantisation tables, each of which Pillow orders in Python: four of 16 bits take 520."""

MAX_COMPONENTS = 255
"""Components that a frame can name; Pillow lists them all."""

MAX_RESOURCES = 5_000
"""Photoshop's resources, which Pillow parses in Python; a real picture has some dozen."""

_FILL = b"\xff" * (MAX_FILL + 1)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_EOI, _SOS, _DQT, _APP1 = 0xD9, 0xDA, 0xDB, 0xE1
_BARE = frozenset((0x01, 0xC8, 0xD8, _EOI, *range(0xF0, 0xFE)))
"""Markers after which Pillow expects no segment; all others are followed by one, which begins with its length."""

_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7))
_ARITHMETIC = frozenset((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_EXIF = b"Exif\0\0"
_FRAME = re.compile(rb"\xff[\xc9-\xcb\xcd-\xcf]\x00[\x0b\x0e\x11\x14]\x08", re.DOTALL)
"""The header of an arithmetic-coded frame of 8 bits and one to four components, wherever it stands."""


def check(data: bytes | bytearray) -> Effort:
    """Count what decoding takes.

    Raises:
        RefusedError: arithmetic coding, which only benchmarks write and which takes ten times as long as Huffman's; or more
            scans, segments or resources than cameras and tools write; or EXIF as none of them writes it.
    """
    segments = scans = frames = tables = junk = 0
    first_scan = len(data)
    exif = b""
    position = 2
    while match := _MARKER.search(data, position):
        marker = match[1][0]
        if scans:
            _check_fill(data, position, match.start())
        else:
            junk += match.start() - position
            refuse_above(MAX_JUNK, junk, "a JPEG picture of at most {} bytes between its segments")
        position = match.end()
        if marker == _EOI and scans:
            break
        segments += 1
        refuse_above(MAX_SEGMENTS, segments, "a JPEG picture of at most {} segments")
        if marker in _ARITHMETIC:
            raise RefusedError("expected a JPEG picture in Huffman coding, got one in arithmetic coding")
        if marker in _BARE:
            continue
        length = max(2, int.from_bytes(data[position : position + 2], "big"))
        if marker == _SOS:
            scans += 1
            if scans == 1:
                first_scan = position
                _check_flood(data, position)
            refuse_above(MAX_SCANS, scans, "a JPEG picture of at most {} scans")
        elif marker == _DQT:
            tables += length
            refuse_above(MAX_TABLES, tables, "a JPEG picture of at most {} bytes of quantisation tables")
        elif marker in _FRAMES:
            frames += 1
            refuse_above(1, frames, "a JPEG picture of {} frame")
            refuse_above(8 + 3 * MAX_COMPONENTS, length, "a JPEG picture whose frame header has at most {} bytes")
        elif marker == _APP1 and data[position + 2 : position + 8] == _EXIF:
            exif += data[position + 8 : position + length]
        position += length
    if scans and match is None:
        _check_fill(data, position, len(data))
    refuse_above(MAX_RESOURCES, data.count(b"8BIM", 0, first_scan), "a JPEG picture of at most {} Photoshop resources")
    check_exif(exif)
    return Effort(parts=segments, passes=max(1, scans))


def _check_fill(data: bytes | bytearray, start: int, end: int) -> None:
    """Refuse more than `MAX_FILL` fill bytes in a row between two places in a scan."""
    if end - start > MAX_FILL and data.find(_FILL, start, end) >= 0:
        raise RefusedError(f"expected a JPEG picture of at most {MAX_FILL:,} fill bytes in a row, got more")


def _check_flood(data: bytes | bytearray, start: int) -> None:
    """Refuse them without a search for markers, which takes half a second over 32 MiB, where nothing like an end comes before."""
    flood = data.find(_FILL, start)
    if flood >= 0 and data.find(b"\xff\xd9", start, flood) < 0:
        _check_fill(data, flood, len(data))


def count_passes(data: bytes | bytearray, pieces: int) -> int:
    """Return how often each pixel of JPEG pictures inside another file (TIFF) is decoded, at most.

    Raises:
        RefusedError: one is in arithmetic coding, or they have more scans than `MAX_SCANS` for each of the `pieces`.
    """
    if _FRAME.search(data):
        raise RefusedError("expected JPEG data in Huffman coding, got some in arithmetic coding")
    scans = data.count(b"\xff\xda")
    refuse_above(MAX_SCANS * pieces, scans, "JPEG data of at most {} scans")
    return min(MAX_SCANS, scans) if scans > 4 * pieces else 1
