"""Builds a reference of the statistics of good pictures: bin edges, groups of classes, counts, mean saliency of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from camserve.explain.observer import NullObserver, Observation
from camserve.monitoring.measure import Measurements, measure
from camserve.monitoring.reference import BINS, PER_GROUP, TAIL, UNSEEN, Attention, Provenance, Reference
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS, Scale

FEWEST = 10
"""Least pictures of a group of classes: a share of fewer is mostly chance, and so would be a drift of the class mix."""

PER_CLASS = 20
"""Least pictures of a class whose mean saliency is kept."""

CHUNK = 64
"""Observations that are measured at once."""

Floats = NDArray[np.float64]


class Collector(NullObserver):
    """Observer that measures every picture.

    Attributes:
        shares: each picture's map `[h, w]` divided by its sum; None where it is degenerate.
    """

    def __init__(self, scale: Scale | None) -> None:
        self._scale = scale
        self._waiting: list[Observation] = []
        self._measured: list[Measurements] = []
        self.shares: list[Floats | None] = []
        self._calls: list[int] = []

    def samples(self) -> bool:
        """Samples every picture."""
        return True

    def observe(self, observation: Observation) -> None:
        """Queues a picture, and measures those that wait when there are enough."""
        self._waiting.append(observation)
        self._calls.append(observation.call)
        if len(self._waiting) >= CHUNK:
            self._measure()

    def take_calls(self) -> list[int]:
        """Returns which call of its batch each picture was that came since this was asked last."""
        calls, self._calls = self._calls, []
        return calls

    def measurements(self) -> Measurements:
        """Returns the statistics of all pictures, in the order in which they came."""
        self._measure()
        parts = self._measured
        values = {name: np.concatenate([np.empty(0), *(part.values[name] for part in parts)]) for name in STATISTICS}
        targets = [target for part in parts for target in part.targets]
        return Measurements(values, targets, [reason for part in parts for reason in part.reasons])

    def _measure(self) -> None:
        if not self._waiting:
            return
        measurements = measure(self._waiting, self._scale)
        for observation, reason in zip(self._waiting, measurements.reasons, strict=True):
            whole = observation.maps[0].astype(np.float64)
            self.shares.append(None if reason else whole / whole.sum())
        self._measured.append(measurements)
        self._waiting = []


def build_reference(measurements: Measurements, shares: Iterable[Floats | None], provenance: Provenance) -> Reference:
    """Builds the reference of M pictures.

    A picture is counted as `UNSEEN` if no other one has its class, for the reason that `Reference` gives. Its class still gets
    a group, so that predictions of it count as known.

    Args:
        measurements: statistics of the M pictures.
        shares: their M maps `[h, w]`, each divided by its sum; None where it is degenerate.
        provenance: what they were made with.
    """
    targets = measurements.targets
    groups = group_classes(targets)
    sizes = Counter(targets)
    places = np.array([groups[target] if sizes[target] > 1 else UNSEEN for target in targets], dtype=np.int64)
    edges = {name: compute_edges(values[~np.isnan(values)]) for name, values in measurements.values.items()}
    bare = Reference(provenance, len(targets), edges, groups, {}, average_attention(targets, shares))
    counts = {}
    for name, values in measurements.values.items():
        known = ~np.isnan(values)
        table = np.zeros((BINS, BINS), dtype=np.int64)
        np.add.at(table, (places[known], bare.assign_bins(name, values[known])), 1)
        counts[name] = table
    tails = {}
    for name, values in measurements.values.items():
        known = ~np.isnan(values) & ((places != UNSEEN) | (name not in MAP_STATISTICS))
        if known.any():
            low, high = np.quantile(values[known], (TAIL, 1 - TAIL), method="inverted_cdf")
            tails[name] = (float(low), float(high))
    return Reference(provenance, bare.images, edges, groups, counts, bare.attention, tails)


def compute_edges(values: Floats) -> tuple[float, ...]:
    """Computes nine edges that divide values `[M]`, without NaN, into ten bins as even as possible.

    Edges lie between values that occur, so that rounding moves no value across. Where at most eight different values occur, each
    gets a bin of its own, and so does what lies below and above all of them.

    Returns:
        The edges, ascending; all 0 where there are no values.
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
    """Divides the classes that occur into at most nine groups, as even in size as whole classes allow.

    A group is to have about `PER_GROUP` pictures. A rare class beside common ones gets a group from `FEWEST` pictures on, so
    that it is noticed when it occurs more often. Classes with a single picture, which counts as unseen, do not fill a group.

    Args:
        targets: the M pictures' class indices.

    Returns:
        The group, 0 to 8, of each class index.
    """
    sizes = Counter(targets)
    repeated = sum(size for size in sizes.values() if size > 1)
    wanted = max(1, min(UNSEEN, repeated // PER_GROUP, len(sizes)))
    return next((groups for count in range(wanted, 0, -1) if (groups := _even(sizes, count))), {})


def _even(sizes: Counter[int], count: int) -> dict[int, int]:
    """Divides classes into `count` groups, the largest first, each into the smallest group; {} if a group gets too small."""
    loads, filled = [0] * count, [0] * count
    groups = {}
    for target, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        group = loads.index(min(loads))
        groups[target] = group
        loads[group] += size
        filled[group] += size if size > 1 else 0
    return groups if count == 1 or min(filled) >= FEWEST else {}


def average_attention(targets: Sequence[int], shares: Iterable[Floats | None]) -> dict[int, Attention]:
    """Averages the maps `[h, w]`, as shares, of each class with at least `PER_CLASS` pictures and maps of one size.

    `shares` are looked at once, and none is kept.
    """
    counts: Counter[int] = Counter()
    sums: dict[int, dict[tuple[int, ...], Floats]] = {}
    for target, share in zip(targets, shares, strict=True):
        if share is not None:
            by_size = sums.setdefault(target, {})
            by_size[share.shape] = by_size[share.shape] + share if share.shape in by_size else share
            counts[target] += 1
    return {
        target: Attention(counts[target], whole / counts[target])
        for target, _ in Counter(targets).most_common()
        if counts[target] >= PER_CLASS and len(sums[target]) == 1
        for whole in sums[target].values()
    }
