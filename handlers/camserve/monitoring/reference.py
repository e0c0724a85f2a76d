"""What is normal: how the statistics of good pictures were distributed. `scripts/reference.py` writes it into the archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.monitoring.measure import Measured
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS

FILE = "explain_reference.json"
FORMAT = 2
BINS = 10
CLASS = "class"
"""The statistic whose bins are the groups of predicted classes: the class mix."""
UNSEEN = BINS - 1
"""The group of all classes that the reference has not seen."""
PER_GROUP = 50
"""Of how many pictures at least the shares of ten bins are taken: below, they are mostly chance."""
INPUT = ("resize", "crop", "interpolation", "mean", "std", "exif", "precision")
"""The keys of the configuration that decide what the model gets of a picture, and in what it computes."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class StaleReference(ValueError):  # noqa: N818 the name says what is wrong
    """A reference that cannot be used; the message says why, in one line."""


@dataclass(frozen=True)
class Provenance:
    """What the reference was made with: it holds for no other layer, method or weights, and for no other input (`input_of`)."""

    layer: str
    method: str
    weights: str
    input: str = ""


def input_of(config: Config) -> str:
    """What the keys `INPUT` of a configuration are, in one line: `resize=256 crop=224 ...`."""
    return " ".join(f"{name}={json.dumps(getattr(config, name), separators=(',', ':'))}" for name in INPUT)


@dataclass(frozen=True)
class Attention:
    """Where the model looks for one class: the mean share `[h, w]` of the map in each cell, and of how many pictures."""

    images: int
    grid: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Bins and counts of good pictures.

    A picture whose class came up only once is counted as `UNSEEN`: left out of the reference, it would be. So that group's
    size over all pictures is the Good-Turing estimate of how many predictions to come are of classes that the reference never
    saw, and the others are smaller by as much (I. J. Good, "The population frequencies of species and the estimation of
    population parameters", Biometrika 40, 1953).

    Attributes:
        edges: for each statistic the nine edges of its ten bins, ascending; a value on an edge falls above it.
        groups: for each class index that was predicted its group, 0 to 8.
        counts: for each statistic how many pictures `[group, bin]`.
        attention: for classes of which there were enough.
    """

    made: Provenance
    images: int
    edges: Mapping[str, tuple[float, ...]]
    groups: Mapping[int, int]
    counts: Mapping[str, Counts]
    attention: Mapping[int, Attention]

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell this reference from others: counts by its bins are comparable with no other's."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    @property
    def group_images(self) -> Counts:
        """How many pictures each group has, `[10]`: every picture has a confidence."""
        sizes: Counts = self.counts["confidence"].sum(1)
        return sizes

    @property
    def known_images(self) -> Counts:
        """From how many pictures each group's shares are known, `[10]`: those of unseen classes may be from all."""
        sizes = self.group_images.copy()
        sizes[UNSEEN] = sizes[UNSEEN] if sizes[UNSEEN] >= PER_GROUP else self.images
        return sizes

    @property
    def statistics(self) -> list[str]:
        """Those that pictures of the reference have."""
        return [name for name in self.counts if self.table(name).any()]

    def table(self, statistic: str) -> Counts:
        """The counts `[group, bin]` that windows are compared with: of the maps those of known classes only.

        How a class is looked at that the reference has not seen, nobody knows; that it came up is told as a change of the mix.
        """
        counts = self.counts[statistic].copy()
        if statistic in MAP_STATISTICS:
            counts[UNSEEN] = 0
        return counts

    def shares(self, statistic: str) -> Floats:
        """Which share of each group's pictures falls into each bin, `[group, bin]`, each 0 to 1.

        A row adds up to the share of the group's pictures that have the statistic: of a class whose maps mostly say nothing
        less is to be expected among the maps. Groups of fewer than `PER_GROUP` pictures have the shares of several together.
        """
        counts, sizes = self.table(statistic), self.group_images
        found = np.zeros((BINS, BINS))
        for pool in self._pools():
            found[pool] = counts[pool].sum(0) / max(1, sizes[pool].sum())
        if sizes[UNSEEN] >= PER_GROUP:
            found[UNSEEN] = counts[UNSEEN] / sizes[UNSEEN]
        elif statistic not in MAP_STATISTICS:
            found[UNSEEN] = counts.sum(0) / self.images
        return found

    def _pools(self) -> list[list[int]]:
        """The groups of known classes, the smallest merged until each pool has `PER_GROUP` pictures."""
        sizes = self.group_images
        pools: list[list[int]] = []
        waiting: list[int] = []
        for group in sorted(set(self.groups.values()), key=lambda group: (sizes[group], group)):
            waiting.append(group)
            if sizes[waiting].sum() >= PER_GROUP:
                pools.append(waiting)
                waiting = []
        return [*pools[:-1], [*pools[-1], *waiting]] if pools else [waiting]

    def bins(self, statistic: str, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each value."""
        return np.searchsorted(np.array(self.edges[statistic]), values, side="right").astype(np.int64)

    def group(self, index: int) -> int:
        """The group of a predicted class."""
        return self.groups.get(index, UNSEEN)

    def counted(self, found: Measured) -> dict[str, Counts]:
        """How many pictures fall into each bin, `[10]`, of each of `statistics` and of the class mix; see `table`."""
        groups = np.array([self.group(target) for target in found.targets], dtype=np.int64)
        counts = {CLASS: np.bincount(groups, minlength=BINS)}
        for name in self.statistics:
            kept = ~np.isnan(found.values[name]) & ((groups != UNSEEN) | (name not in MAP_STATISTICS))
            counts[name] = np.bincount(self.bins(name, found.values[name][kept]), minlength=BINS)
        return counts

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
            values = json.loads(text)
            if values["format"] < FORMAT or "input" not in values["made"]:
                raise StaleReference(f"{FILE} is of an older release; make it again")
            return _read(values)
        except StaleReference:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StaleReference(f"{FILE} cannot be read ({type(error).__name__}); make it again") from None


def load(directory: Path | str, made: Provenance) -> Reference | None:
    """The reference of an unpacked archive; None if it holds none.

    Raises:
        StaleReference: it is damaged, or was made with another layer, method, input or other weights.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    found = Reference.from_json(path.read_text("utf-8"))
    for name, now in vars(made).items():
        then = getattr(found.made, name)
        if then != now:
            told = _differing(then, now) if name == "input" else (f"the {name} {then}", now)
            raise StaleReference(f"{FILE} was made with {told[0]}, the archive now has {told[1]}; make it again")
    return found


def _differing(then: str, now: str) -> tuple[str, str]:
    """Those parts of two inputs that are not in the other."""
    parts = then.split(), now.split()
    before, after = (" ".join(part for part in some if part not in others) for some, others in (parts, parts[::-1]))
    return before or "nothing of it", after or "nothing of it"


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
    return Reference(Provenance(**values["made"]), int(values["images"]), edges, groups, counts, attention)


def _read_edges(given: Sequence[float]) -> tuple[float, ...]:
    edges = tuple(float(edge) for edge in given)
    if len(edges) != BINS - 1 or not all(low <= high for low, high in pairwise(edges)):
        raise ValueError
    return edges
