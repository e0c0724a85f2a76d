"""What is normal: how the statistics of good pictures were distributed. `scripts/reference.py` writes it into the archive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.mapstats import STATISTICS

FILE = "explain_reference.json"
FORMAT = 1
BINS = 10
CLASS = "class"
"""The statistic whose bins are the groups of predicted classes: the class mix."""
UNSEEN = BINS - 1
"""The group of all classes that the reference has not seen."""

Counts = NDArray[np.int64]


class StaleReference(ValueError):  # noqa: N818 the name says what is wrong
    """A reference that cannot be used; the message says why, in one line."""


@dataclass(frozen=True)
class Made:
    """What the reference was made with: it holds for no other layer, method or weights."""

    layer: str
    method: str
    weights: str


@dataclass(frozen=True)
class Attention:
    """Where the model looks for one class: the mean share `[h, w]` of the map in each cell, and of how many pictures."""

    images: int
    grid: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Bins and counts of good pictures.

    Attributes:
        edges: for each statistic the nine edges of its ten bins, ascending; a value on an edge falls above it.
        groups: for each class index that was predicted its group, 0 to 8.
        counts: for each statistic how many pictures `[group, bin]`.
        attention: for classes of which there were enough.
    """

    made: Made
    images: int
    edges: Mapping[str, tuple[float, ...]]
    groups: Mapping[int, int]
    counts: Mapping[str, Counts]
    attention: Mapping[int, Attention]

    @property
    def group_images(self) -> Counts:
        """How many pictures each group has, `[10]`: every picture has a confidence."""
        sizes: Counts = self.counts["confidence"].sum(1)
        return sizes

    def bins(self, statistic: str, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each value."""
        return np.searchsorted(np.array(self.edges[statistic]), values, side="right").astype(np.int64)

    def group(self, index: int) -> int:
        """The group of a predicted class."""
        return self.groups.get(index, UNSEEN)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        attention = {
            str(index): {"images": found.images, "grid": np.round(found.grid, 5).tolist()}
            for index, found in self.attention.items()
        }
        return json.dumps(
            {
                "format": FORMAT,
                "made": vars(self.made),
                "images": self.images,
                "edges": {name: list(edges) for name, edges in self.edges.items()},
                "groups": {str(index): group for index, group in self.groups.items()},
                "counts": {name: counts.tolist() for name, counts in self.counts.items()},
                "attention": attention,
            },
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> Reference:
        """Reads and checks a reference.

        Raises:
            StaleReference: it is damaged, or of another format.
        """
        try:
            return _read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StaleReference(f"{FILE} cannot be read ({type(error).__name__}); make it again") from None


def load(directory: Path | str, made: Made) -> Reference | None:
    """The reference of an unpacked archive; None if it holds none.

    Raises:
        StaleReference: it is damaged, or was made with another layer, method or other weights.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    found = Reference.from_json(path.read_text("utf-8"))
    for name, now in vars(made).items():
        then = getattr(found.made, name)
        if then != now:
            raise StaleReference(f"{FILE} was made with the {name} {then}, the archive now has {now}; make it again")
    return found


def _read(values: Any) -> Reference:
    if values["format"] != FORMAT or set(values["edges"]) != set(STATISTICS) or set(values["counts"]) != set(STATISTICS):
        raise ValueError
    counts = {name: np.array(table, dtype=np.int64) for name, table in values["counts"].items()}
    edges = {name: _read_edges(given) for name, given in values["edges"].items()}
    if any(table.shape != (BINS, BINS) or (table < 0).any() for table in counts.values()):
        raise ValueError
    attention = {
        int(index): Attention(int(found["images"]), np.array(found["grid"], dtype=np.float64))
        for index, found in values["attention"].items()
    }
    groups = {int(index): int(group) for index, group in values["groups"].items()}
    if not all(0 <= group < UNSEEN for group in groups.values()):
        raise ValueError
    return Reference(Made(**values["made"]), int(values["images"]), edges, groups, counts, attention)


def _read_edges(given: Sequence[float]) -> tuple[float, ...]:
    edges = tuple(float(edge) for edge in given)
    if len(edges) != BINS - 1 or not all(low <= high for low, high in pairwise(edges)):
        raise ValueError
    return edges
