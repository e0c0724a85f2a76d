"""Directories of TIFF (and so of EXIF): tags whose values Pillow reads, and partly turns into Python's numbers one by one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.pictures.bounds.work import refuse_above

MAX_TAGS = 1_000
"""Tags of one directory; real ones have up to about a hundred."""

MAX_NUMBERS = 250_000
"""Numbers in the tags of one directory; the palette of 16 bits has 196,608."""

MAX_RATIONALS = 2_000
"""Fractions in the tags of one directory, each of which takes Pillow 7 µs and more; real ones have a few dozen."""

MAX_READ = 4
"""How often all tags together may hold the file's bytes: values that share bytes are read again for each."""

_SLACK = 1 << 20
_SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8], np.int64)
"""Bytes of a value, by its type."""

_RATIONAL = (5, 10)
_NO_NUMBERS = (1, 2, 7)
"""Bytes, text and what has no type: Pillow keeps them as they are."""


@dataclass(frozen=True)
class Directory:
    """One directory, as it stands in a file.

    Attributes:
        tags, types, counts, places: of each entry; `places` is where its value begins.
        order: `<` or `>`.
    """

    data: bytes | bytearray
    tags: NDArray[np.int64]
    types: NDArray[np.int64]
    counts: NDArray[np.int64]
    places: NDArray[np.int64]
    order: str

    def values(self, tag: int) -> NDArray[np.int64]:
        """Return the whole numbers that the first entry of a tag holds; empty where there is none, or they lie outside."""
        found = np.flatnonzero(self.tags == tag)
        if not len(found):
            return np.zeros(0, np.int64)
        kind, count, place = (int(each[found[0]]) for each in (self.types, self.counts, self.places))
        size = int(_SIZES[kind]) if kind < len(_SIZES) else 0
        if kind not in {3, 4, 13, 16, 18} or place < 0 or place + size * count > len(self.data):
            return np.zeros(0, np.int64)
        return np.frombuffer(self.data, f"{self.order}u{size}", count, place).astype(np.int64)

    def number(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        values = self.values(tag)
        return int(values[0]) if len(values) else default

    def check(self, exempt: Collection[int] = ()) -> None:
        """Refuse what no camera and no tool writes.

        Args:
            exempt: tags whose numbers do not count, because they are bounded otherwise.

        Raises:
            RefusedError: too many tags, numbers or fractions, or values that share the file's bytes again and again.
        """
        kinds = np.where(self.types < len(_SIZES), self.types, 0)
        sizes = _SIZES[kinds] * np.minimum(self.counts, len(self.data) + 1)
        there = np.clip(len(self.data) - self.places, 0, sizes)
        whole = (sizes == there) & ~np.isin(self.tags, list(exempt))  # Pillow passes over values that are cut off
        refuse_above(
            MAX_RATIONALS, self._count(whole & np.isin(kinds, _RATIONAL)), "a picture of at most {} fractions in its tags"
        )
        refuse_above(
            MAX_NUMBERS, self._count(whole & ~np.isin(kinds, _NO_NUMBERS)), "a picture of at most {} numbers in its tags"
        )
        most = MAX_READ * len(self.data) + _SLACK
        refuse_above(most, int(there.sum()), "a picture whose tags hold at most {} bytes together")

    def _count(self, chosen: NDArray[np.bool_]) -> int:
        return int(self.counts[chosen].sum())


def read_directory(data: bytes | bytearray, at: int = -1) -> Directory | None:
    """Read the directory at a place in a TIFF file, or its first one; None where there is none.

    Raises:
        RefusedError: it has more than `MAX_TAGS` tags.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return None
    big = 43 in (data[2:3] + data[3:4])
    width, step, start = (8, 20, 8) if big else (2, 12, 4)
    byteorder = "little" if order == "<" else "big"
    if at < 0:
        at = int.from_bytes(data[start : start + (8 if big else 4)], byteorder)  # type: ignore[arg-type]
    count = int.from_bytes(data[at : at + width], byteorder)  # type: ignore[arg-type]
    if at + width > len(data):
        return None
    count = min(count, (len(data) - at - width) // step)
    refuse_above(MAX_TAGS, count, "a picture of at most {} tags in a directory")
    number = "u8" if big else "u4"
    layout = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", order + number), ("value", order + number)])
    entries = np.frombuffer(data, layout, count, at + width)
    limit = np.uint64(1 << 62)
    types, counts = entries["type"].astype(np.int64), np.minimum(entries["count"].astype(np.uint64), limit).astype(np.int64)
    sizes = _SIZES[np.where(types < len(_SIZES), types, 0)] * np.minimum(counts, len(data) + 1)
    inline = at + width + step * np.arange(count) + 4 + layout["count"].itemsize
    offsets = np.minimum(entries["value"].astype(np.uint64), limit).astype(np.int64)
    places = np.where(sizes > layout["value"].itemsize, offsets, inline)
    return Directory(data, entries["tag"].astype(np.int64), types, counts, places, order)


def check_exif(block: bytes) -> None:
    """Refuse an EXIF block (without its `Exif` mark) as no camera and no tool writes it; see `Directory.check`."""
    directory = read_directory(block)
    if directory is not None:
        directory.check()
