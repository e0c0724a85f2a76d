"""TIFF: tags, strips and tiles."""

from __future__ import annotations

import math

from camserve.pictures.bounds import jpeg
from camserve.pictures.bounds.ifd import Directory, read_directory
from camserve.pictures.bounds.work import Effort, refuse_above

MAX_PIECES = 20_000
"""Strips or tiles, for each of which Pillow makes a decoder in Python (13 µs). libtiff's own strips are of 8 kB, and one row
a strip is common."""

MAX_OVERLAP = 4
"""How often strips or tiles may hold the file's bytes: libtiff may copy and turn each piece's bytes before it decodes them."""

_WIDTH, _LENGTH, _COMPRESSION, _PLANAR, _SAMPLES = 256, 257, 259, 284, 277
_STRIPS, _STRIP_BYTES, _ROWS = 273, 279, 278
_TILES, _TILE_BYTES, _TILE_WIDTH, _TILE_LENGTH = 324, 325, 322, 323
_SUB_DIRECTORIES = (34665, 34853, 40965)
_PIECES = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES)
_JPEG = (6, 7)
_MOST_PIXELS = 2_000_000_000
_SLACK = 1 << 20


def check(data: bytes | bytearray) -> Effort:
    """Count what decoding takes.

    Raises:
        RefusedError: more strips, tiles, tags or numbers than tools write, pieces that share the file's bytes again and
            again, or JPEG data as `jpeg.count_passes` refuses it.
    """
    first = read_directory(data)
    if first is None:
        return Effort()
    first.check(exempt=_PIECES)
    _check_below(first)
    pieces = max(_given_pieces(first), _needed_pieces(first))
    refuse_above(MAX_PIECES, pieces, "a TIFF picture of at most {} strips or tiles")
    held = sum(int(first.values(tag).sum()) for tag in (_STRIP_BYTES, _TILE_BYTES))
    refuse_above(MAX_OVERLAP * len(data) + _SLACK, held, "a TIFF picture whose strips or tiles hold at most {} bytes together")
    passes = jpeg.count_passes(data, max(1, pieces)) if first.number(_COMPRESSION, 1) in _JPEG else 1
    return Effort(parts=len(first.tags) + pieces, passes=passes)


def _check_below(directory: Directory, depth: int = 2) -> None:
    """Check the directories that Pillow reads besides: EXIF's, GPS', and the one inside EXIF's."""
    for tag in _SUB_DIRECTORIES:
        for place in directory.values(tag)[:1]:
            below = read_directory(directory.data, int(place))
            if below is not None:
                below.check()
                if depth > 1:
                    _check_below(below, depth - 1)


def _given_pieces(directory: Directory) -> int:
    return max((int(count) for tag, count in zip(directory.tags, directory.counts, strict=True) if tag in _PIECES), default=0)


def _needed_pieces(directory: Directory) -> int:
    """Return how many strips or tiles a picture of this size has, listed or not; 0 where it is larger than any limit allows."""
    width, length = directory.number(_WIDTH, 0), directory.number(_LENGTH, 0)
    if width * length > _MOST_PIXELS:
        return 0
    planes = directory.number(_SAMPLES, 1) if directory.number(_PLANAR, 1) == 2 else 1
    tile_width, tile_length = directory.number(_TILE_WIDTH, 0), directory.number(_TILE_LENGTH, 0)
    if tile_width and tile_length:
        return math.ceil(width / tile_width) * math.ceil(length / tile_length) * planes
    return math.ceil(length / max(1, directory.number(_ROWS, max(1, length)))) * planes
