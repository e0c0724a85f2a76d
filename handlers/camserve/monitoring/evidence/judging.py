"""Says which predictions are unusual, and why: by the reference, by the map, and by the confidence. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.monitoring.evidence.records import Reason
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import BINS, PER_GROUP, TAIL, UNSEEN, Floats, Reference
from camserve.monitoring.statistics import MAP_STATISTICS

RARE = 0.01
"""A bin is rare where the reference leads one to expect fewer than this share of the class's predictions in it."""


class Judge:
    """Finds the reasons to keep predictions.

    A statistic is rare where its value lies beyond the reference's tails, or in a bin that hardly any picture of the class's
    group is in. By Laplace's rule of succession none of 50 pictures is no evidence that a bin is rare, none of 200 is.

    Args:
        reference: None: only maps and confidence are judged.
        confidence: below which the most probable class is unsure; 0: never.
        scores: what the scores are; only probabilities of one class among several can be unsure.
    """

    def __init__(self, reference: Reference | None, confidence: float, scores: str) -> None:
        self._reference = reference
        self._confidence = confidence if scores == "softmax" else 0.0
        self._shares = {} if reference is None else {name: _expect(reference, name) for name in reference.statistics}

    def judge(self, measurements: Measurements) -> list[list[Reason]]:
        """Return the reasons to keep each of M predictions; none where it is usual."""
        reasons: list[list[Reason]] = [[] for _ in measurements.targets]
        for place, warning in enumerate(measurements.reasons):
            if warning:
                reasons[place].append(Reason("degenerate", {"warning": warning}))
        groups = self.find_groups(measurements)
        if groups is not None:
            for place in np.flatnonzero(groups == UNSEEN).tolist():
                reasons[place].append(Reason("unseen"))
        confidence = measurements.values["confidence"]
        for place in np.flatnonzero(confidence < self._confidence).tolist():
            about = {"confidence": float(confidence[place]), "below": self._confidence}
            reasons[place].append(Reason("unsure", about))
        if self._reference is not None and groups is not None:
            for name in self._shares:
                self._judge_statistic(name, measurements.values[name], groups, reasons)
        return reasons

    def find_groups(self, measurements: Measurements) -> NDArray[np.int64] | None:
        """Return the group of each prediction's class in the reference, `[M]`; None: there is no reference."""
        reference = self._reference
        return None if reference is None else np.array([reference.group(target) for target in measurements.targets])

    def find_bins(self, values: Mapping[str, float | None], group: int | None) -> dict[str, int]:
        """Return the bin of each statistic of one prediction, as the monitor counts it."""
        reference = self._reference
        if reference is None:
            return {}
        known = {name: value for name in reference.statistics if (value := values[name]) is not None}
        counted = {name: value for name, value in known.items() if group != UNSEEN or name not in MAP_STATISTICS}
        return {name: int(reference.assign_bins(name, np.array([value]))[0]) for name, value in counted.items()}

    def _judge_statistic(self, name: str, values: Floats, groups: NDArray[np.int64], reasons: Sequence[list[Reason]]) -> None:
        reference: Any = self._reference
        counted = ~np.isnan(values) & ((groups != UNSEEN) | (name not in MAP_STATISTICS))
        bins = np.where(counted, reference.assign_bins(name, np.where(counted, values, 0.0)), 0)
        shares = self._shares[name][groups, bins]
        low, high = reference.tails.get(name, (-np.inf, np.inf))
        sides = np.where(values < low, -1, np.where(values > high, 1, 0))
        for place in np.flatnonzero(counted & ((shares < RARE) | (sides != 0))).tolist():
            side = {-1: "low", 1: "high", 0: None}[int(sides[place])]
            share = float(shares[place]) if side is None else TAIL
            about = {"statistic": name, "bin": int(bins[place]), "share": round(share, 6), "side": side}
            reasons[place].append(Reason("rare", about))


def _expect(reference: Reference, name: str) -> Floats:
    """Return the share of each group's pictures that is to be expected in each bin, `[group, bin]`."""
    shares = reference.shares(name)
    totals = shares.sum(1, keepdims=True)
    images = np.maximum(reference.group_images[:, None], PER_GROUP) * totals
    known = np.divide(shares, totals, out=np.full((BINS, BINS), 1.0), where=totals > 0)
    return np.where(totals > 0, (known * images + 1) / (images + 2), 1.0)
