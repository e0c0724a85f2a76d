"""PNG: chunks, which Pillow reads one by one in Python, and what it unpacks of them."""

from __future__ import annotations

import struct

from camserve.pictures.bounds.work import Effort, refuse_above

MAX_CHUNKS = 20_000
"""Chunks of one picture: 32 MiB of libpng's chunks of 8 kB are 4,096."""

MAX_OTHERS = 2_000
"""Chunks that hold no pixels: text, times, the frames of an animation."""

MAX_PROFILES = 1
"""The standard allows one; Pillow unpacks each."""

_HEAD = struct.Struct(">I4s")
_PIXELS = (b"IDAT", b"fdAT")
_PACKED = (b"zTXt", b"iTXt", b"iCCP")
_MOST_UNPACKED = 1 << 20
"""Bytes at which Pillow ends unpacking one chunk (`PngImagePlugin.MAX_TEXT_CHUNK`)."""

_RATIO = 1032
"""How many times as large as its bytes what zlib unpacks can be."""


def check(data: bytes | bytearray) -> Effort:
    """Count what decoding takes.

    Raises:
        RefusedError: more chunks than tools write, or a second colour profile.
    """
    chunks = others = profiles = unpacked = 0
    position = 8
    while position + 8 <= len(data):
        length, kind = _HEAD.unpack_from(data, position)
        position += length + 12
        chunks += 1
        refuse_above(MAX_CHUNKS, chunks, "a PNG picture of at most {} chunks")
        if kind in _PIXELS:
            continue
        if kind == b"IEND":
            break
        others += 1
        refuse_above(MAX_OTHERS, others, "a PNG picture of at most {} chunks without pixels")
        if kind in _PACKED:
            unpacked += min(_RATIO * length, _MOST_UNPACKED)
            profiles += kind == b"iCCP"
            refuse_above(MAX_PROFILES, profiles, "a PNG picture of at most {} colour profile")
    return Effort(parts=chunks, unpacked=unpacked)
