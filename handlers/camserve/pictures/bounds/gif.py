"""GIF: what stands before the first frame, which is the only one that is decoded."""

from __future__ import annotations

from camserve.pictures.bounds.work import Effort, refuse_above

MAX_BLOCKS = 20_000
"""Blocks of up to 255 bytes before the first frame: metadata of 5 MB."""

MAX_COMMENT = 2_000
"""Of which in comments: half a megabyte of text, which older releases of Pillow copy again for each block."""

_EXTENSION, _COMMENT = 0x21, 0xFE
_ENDS = b",;"
"""What a frame begins with, and what the file ends with."""


def check(data: bytes | bytearray) -> Effort:
    """Count what decoding takes.

    Raises:
        RefusedError: more blocks before the first frame than tools write.
    """
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = comments = 0
    while position + 2 < len(data) and data[position] not in _ENDS:
        blocks += 1  # an extension with its last, empty block, or a stray byte, which Pillow passes over
        refuse_above(MAX_BLOCKS, blocks, "a GIF picture of at most {} blocks before its first frame")
        if data[position] != _EXTENSION:
            position += 1
            continue
        comment = data[position + 1] == _COMMENT
        position += 2
        while position < len(data) and data[position]:
            position += data[position] + 1
            blocks += 1
            comments += comment
            refuse_above(MAX_BLOCKS, blocks, "a GIF picture of at most {} blocks before its first frame")
            refuse_above(MAX_COMMENT, comments, "a GIF picture of at most {} blocks in comments")
        position += 1
    return Effort(parts=blocks)
