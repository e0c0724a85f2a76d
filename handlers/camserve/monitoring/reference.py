"""The reference for drift detection: how the statistics of good pictures are distributed, in ten bins each.

`scripts/reference.py` writes it into the archive. Drift is measured as the population stability index (PSI) of the bins'
shares; that of the map statistics is what the literature calls saliency or attribution drift (the alert: attention drift).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.monitoring.measure import Measurements
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS

FILE = "explain_reference.json"
EXAMPLES = "explain_reference_examples.json"
"""Small copies of some of the pictures that it was made of, where they were asked for; no worker reads them."""
FORMAT = 2
BINS = 10
CLASS = "class"
"""The statistic whose bins are the groups of predicted classes: the class mix (its drift: label shift)."""
UNSEEN = BINS - 1
"""The group of all classes that are absent from the reference."""
PER_GROUP = 50
"""Shares of ten bins are taken of at least this many pictures; below, they are mostly chance."""
TAIL = 0.005
"""Share of the pictures in each of the two tails of a statistic."""
INPUT = ("resize", "crop", "interpolation", "mean", "std", "exif", "precision")
"""The configuration keys that decide the model's input and its precision."""
LATER_INPUT = ("channels", "fit", "fill", "scale", "fast_jpeg")
"""Those that came later: written where they are not the default, so that references from before them still hold."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class StaleReference(ValueError):  # noqa: N818 the name says what is wrong
    """A reference cannot be used; the message says why, in one line."""


@dataclass(frozen=True)
class Provenance:
    """What a reference was made with: it holds only for the same layer, method, weights and input (`input_of`)."""

    layer: str
    method: str
    weights: str
    input: str = ""


def input_of(config: Config) -> str:
    """Formats the keys that decide the input in one line: `resize=256 crop=224 ...`."""
    names = [*INPUT, *(name for name in LATER_INPUT if getattr(config, name) != getattr(Config, name))]
    return " ".join(f"{name}={json.dumps(getattr(config, name), separators=(',', ':'))}" for name in names)


def describe_input(config: Config, scores: str) -> str:
    """Format in one line what decides the input, and how scores are read (`OutputReader.describe`)."""
    return " ".join(filter(None, (input_of(config), scores)))


@dataclass(frozen=True)
class Attention:
    """Mean saliency of one class: the mean share `[h, w]` of the map in each cell, over `images` pictures."""

    images: int
    grid: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Bins and counts of good pictures.

    A picture is counted as `UNSEEN` if no other one has its class. The size of that group over all pictures is then the
    Good-Turing estimate of the share of future predictions whose class is absent from the reference (I. J. Good, "The
    population frequencies of species and the estimation of population parameters", Biometrika 40, 1953).

    Attributes:
        provenance: what it was made with.
        images: how many pictures it was made of.
        edges: of each statistic, the nine edges of its ten bins, ascending; a value on an edge falls above it.
        groups: of each predicted class index, its group, 0 to 8.
        counts: of each statistic, how many pictures, `[group, bin]`.
        attention: mean saliency, of the classes with enough pictures.
        tails: of each statistic that pictures have, the values below and above which `TAIL` of them lie; {}: an older release's.
    """

    provenance: Provenance
    images: int
    edges: Mapping[str, tuple[float, ...]]
    groups: Mapping[int, int]
    counts: Mapping[str, Counts]
    attention: Mapping[int, Attention]
    tails: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify this reference: counts of its bins cannot be added to those of another."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    @property
    def group_images(self) -> Counts:
        """How many pictures each group has, `[10]`."""
        sizes: Counts = self.counts["confidence"].sum(1)  # which every picture has
        return sizes

    @property
    def known_images(self) -> Counts:
        """Of how many pictures each group's `shares` are, `[10]`: with few unseen ones, all pictures stand for them."""
        sizes = self.group_images.copy()
        sizes[UNSEEN] = sizes[UNSEEN] if sizes[UNSEEN] >= PER_GROUP else self.images
        return sizes

    @property
    def statistics(self) -> list[str]:
        """The statistics that pictures of the reference have."""
        return [name for name in self.counts if self.table(name).any()]

    def table(self, statistic: str) -> Counts:
        """Returns the counts `[group, bin]` that windows of predictions are compared with.

        Map statistics exclude classes that are absent from the reference: there is nothing to compare them with. How often they
        occur is part of the class mix.
        """
        counts = self.counts[statistic].copy()
        if statistic in MAP_STATISTICS:
            counts[UNSEEN] = 0
        return counts

    def shares(self, statistic: str) -> Floats:
        """Computes which share of each group's pictures falls into each bin, `[group, bin]`, 0 to 1.

        Rows sum to the fraction of the group's pictures for which the statistic is defined, which is below 1 where many maps
        are degenerate. Groups of fewer than `PER_GROUP` pictures are pooled.
        """
        counts, sizes = self.table(statistic), self.group_images
        shares = np.zeros((BINS, BINS))
        for pool in self._pools():
            shares[pool] = counts[pool].sum(0) / max(1, sizes[pool].sum())
        if sizes[UNSEEN] >= PER_GROUP:
            shares[UNSEEN] = counts[UNSEEN] / sizes[UNSEEN]
        elif statistic not in MAP_STATISTICS:
            shares[UNSEEN] = counts.sum(0) / self.images
        return shares

    def _pools(self) -> list[list[int]]:
        """Merges the groups of known classes, the smallest first, until each pool has `PER_GROUP` pictures."""
        sizes = self.group_images
        pools: list[list[int]] = []
        waiting: list[int] = []
        for group in sorted(set(self.groups.values()), key=lambda group: (sizes[group], group)):
            waiting.append(group)
            if sizes[waiting].sum() >= PER_GROUP:
                pools.append(waiting)
                waiting = []
        return [*pools[:-1], [*pools[-1], *waiting]] if pools else [waiting]

    def assign_bins(self, statistic: str, values: Floats) -> Counts:
        """Finds the bin, 0 to 9, of each value: `[M]` for `[M]` values without NaN."""
        return np.searchsorted(np.array(self.edges[statistic]), values, side="right").astype(np.int64)

    def group(self, index: int) -> int:
        """Returns the group of a predicted class, 0 to 9."""
        return self.groups.get(index, UNSEEN)

    def count(self, measurements: Measurements) -> dict[str, Counts]:
        """Counts the pictures in each bin, `[10]`, of each of `statistics` and of the class mix; see `table`."""
        groups = np.array([self.group(target) for target in measurements.targets], dtype=np.int64)
        counts = {CLASS: np.bincount(groups, minlength=BINS)}
        for name in self.statistics:
            values = measurements.values[name]
            kept = ~np.isnan(values) & ((groups != UNSEEN) | (name not in MAP_STATISTICS))
            counts[name] = np.bincount(self.assign_bins(name, values[kept]), minlength=BINS)
        return counts

    def to_json(self) -> str:
        """Writes what `from_json` reads."""
        attention = {
            str(index): {"images": attention.images, "grid": np.round(attention.grid, 5).tolist()}
            for index, attention in self.attention.items()
        }
        return json.dumps(
            {
                "format": FORMAT,
                "made": vars(self.provenance),
                "images": self.images,
                "edges": {name: list(edges) for name, edges in self.edges.items()},
                "groups": {str(index): group for index, group in self.groups.items()},
                "counts": {name: counts.tolist() for name, counts in self.counts.items()},
                "attention": attention,
                **({"tails": {name: list(both) for name, both in self.tails.items()}} if self.tails else {}),
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


def load(directory: Path | str, provenance: Provenance) -> Reference | None:
    """Loads the reference of an unpacked archive; None if it holds none.

    Raises:
        StaleReference: it is damaged, or of another provenance than `provenance`.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    reference = Reference.from_json(path.read_text("utf-8"))
    for name, now in vars(provenance).items():
        then = getattr(reference.provenance, name)
        if then != now:
            before, after = _difference(then, now) if name == "input" else (f"the {name} {then}", now)
            raise StaleReference(f"{FILE} was made with {before}, the archive now has {after}; make it again")
    return reference


def _difference(then: str, now: str) -> tuple[str, str]:
    """Returns those parts of each of two inputs (`input_of`) that the other does not have."""
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
        int(index): Attention(int(given["images"]), np.array(given["grid"], dtype=np.float64))
        for index, given in values["attention"].items()
    }
    groups = {int(index): int(group) for index, group in values["groups"].items()}
    if not all(0 <= group < UNSEEN for group in groups.values()):
        raise ValueError
    tails = {name: (float(low), float(high)) for name, (low, high) in values.get("tails", {}).items()}
    if not all(name in STATISTICS and low <= high for name, (low, high) in tails.items()):
        raise ValueError
    return Reference(Provenance(**values["made"]), int(values["images"]), edges, groups, counts, attention, tails)


def _read_edges(given: Sequence[float]) -> tuple[float, ...]:
    edges = tuple(float(edge) for edge in given)
    if len(edges) != BINS - 1 or not all(low <= high for low, high in pairwise(edges)):
        raise ValueError
    return edges
