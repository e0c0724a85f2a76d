"""From the statistics of good pictures to a reference: bin edges, groups of classes, counts, attention by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from camserve.explain.observer import NullObserver, Observation
from camserve.monitoring.measure import Measured, measure
from camserve.monitoring.reference import BINS, PER_GROUP, UNSEEN, Attention, Provenance, Reference
from camserve.monitoring.statistics import STATISTICS, Scale

FEWEST = 10
"""How many pictures a group of classes has at least: a share of fewer is mostly chance, and so is the drift of the mix."""

PER_CLASS = 20
"""Of how many pictures a class's mean attention is kept."""

CHUNK = 64

Floats = NDArray[np.float64]


class Collector(NullObserver):
    """A observer that measures every picture and keeps its statistics, and its map as shares of its sum."""

    def __init__(self, scale: Scale | None) -> None:
        self._scale = scale
        self._waiting: list[Observation] = []
        self._measured: list[Measured] = []
        self.shares: list[Floats | None] = []

    def samples(self) -> bool:
        """Always."""
        return True

    def observe(self, look: Observation) -> None:
        """Keeps the picture until there are enough to measure."""
        self._waiting.append(look)
        if len(self._waiting) >= CHUNK:
            self._measure()

    def found(self) -> Measured:
        """What has been measured, in the order in which it was seen."""
        self._measure()
        parts = self._measured
        values = {name: np.concatenate([np.empty(0), *(part.values[name] for part in parts)]) for name in STATISTICS}
        targets = [target for part in parts for target in part.targets]
        return Measured(values, targets, [reason for part in parts for reason in part.reasons])

    def _measure(self) -> None:
        if not self._waiting:
            return
        found = measure(self._waiting, self._scale)
        for look, reason in zip(self._waiting, found.reasons, strict=True):
            whole = look.maps[0].astype(np.float64)
            self.shares.append(None if reason else whole / whole.sum())
        self._measured.append(found)
        self._waiting = []


def build(found: Measured, shares: Sequence[Floats | None], made: Provenance) -> Reference:
    """The reference of what was measured.

    Pictures of a class that came up only once are counted as `UNSEEN`, for the reason that `Reference` gives; when the class
    comes up again, it is known.
    """
    groups = group_classes(found.targets)
    sizes = Counter(found.targets)
    places = np.array([groups[target] if sizes[target] > 1 else UNSEEN for target in found.targets], dtype=np.int64)
    edges = {name: edges_of(values[~np.isnan(values)]) for name, values in found.values.items()}
    bare = Reference(made, len(found.targets), edges, groups, {}, attention_of(found.targets, shares))
    counts = {}
    for name, values in found.values.items():
        known = ~np.isnan(values)
        table = np.zeros((BINS, BINS), dtype=np.int64)
        np.add.at(table, (places[known], bare.bins(name, values[known])), 1)
        counts[name] = table
    return Reference(made, bare.images, edges, groups, counts, bare.attention)


def edges_of(values: Floats) -> tuple[float, ...]:
    """Nine edges that divide the values into ten bins as evenly as they can be.

    Edges lie between values that occur, so that no rounding moves a value across. Where at most eight different values occur,
    each gets a bin, and what lies below and above all of them too.
    """
    if not len(values):
        return (0.0,) * (BINS - 1)
    distinct, counts = np.unique(values, return_counts=True)
    between = (distinct[:-1] + distinct[1:]) / 2
    if len(distinct) <= BINS - 2:
        low, high = (distinct[end] + side * 1e-6 * max(1.0, abs(distinct[end])) for end, side in ((0, -1), (-1, 1)))
        edges = [low, *between, high]
        return tuple(float(edge) for edge in [*edges, *[high] * (BINS - 1 - len(edges))])
    below = np.cumsum(counts)[:-1]
    wanted = np.arange(1, BINS) * len(values) / BINS
    nearest = np.abs(below[None, :] - wanted[:, None]).argmin(1)
    return tuple(float(between[place]) for place in nearest)


def group_classes(targets: Sequence[int]) -> dict[int, int]:
    """A group for each class that occurs, 0 to 8: as even in size as whole classes allow, and as many as that allows.

    Some `PER_GROUP` pictures are meant for each; a rare class beside common ones has a group with `FEWEST` at least, so that
    it is noticed when it comes up more often. Classes that came up only once, whose pictures count as unseen, do not fill one.
    """
    sizes = Counter(targets)
    repeated = sum(size for size in sizes.values() if size > 1)
    wanted = max(1, min(UNSEEN, repeated // PER_GROUP, len(sizes)))
    return next((groups for count in range(wanted, 0, -1) if (groups := _even(sizes, count))), {})


def _even(sizes: Counter[int], count: int) -> dict[int, int]:
    """The classes in so many groups, the largest class first and each into the smallest group; none if one gets too small."""
    loads, filled = [0] * count, [0] * count
    groups = {}
    for target, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        group = loads.index(min(loads))
        groups[target] = group
        loads[group] += size
        filled[group] += size if size > 1 else 0
    return groups if count == 1 or min(filled) >= FEWEST else {}


def attention_of(targets: Sequence[int], shares: Sequence[Floats | None]) -> dict[int, Attention]:
    """The mean share of each cell for classes of at least `PER_CLASS` pictures whose maps are of one size."""
    found = {}
    for target, _ in Counter(targets).most_common():
        maps = [share for each, share in zip(targets, shares, strict=True) if each == target and share is not None]
        if len(maps) >= PER_CLASS and len({share.shape for share in maps}) == 1:
            found[target] = Attention(len(maps), np.mean(maps, axis=0))
    return found
