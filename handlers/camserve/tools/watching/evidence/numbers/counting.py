"""How the statistics of a time are distributed, estimated from the random sample alone; and which pictures moved them.

What was kept because it is unusual never enters an estimate: there is more of it, the stranger it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from camserve.monitoring.reference import BINS, CLASS, UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.watching.evidence.kept import NAMES, Seen
from camserve.tools.watching.evidence.numbers.drift import Drift, Floats, judge


@dataclass(frozen=True)
class Sample:
    """The random sample of a time, each picture by how many predictions it stands for.

    Attributes:
        images: how many pictures it has.
        stands_for: how many watched predictions they stand for, about.
        worth: how many equally weighted pictures tell as much: `(sum w)^2 / sum w^2` (L. Kish, Survey Sampling, 1965).
        tables: by statistic `[group, bin]`: the pictures there, scaled so that all of them are `worth`.
        counts: by statistic and for the class mix `[10]`, scaled alike.
    """

    images: int
    stands_for: float
    worth: float
    tables: dict[str, Floats]
    counts: dict[str, Floats]

    @property
    def mix(self) -> Floats:
        """Share of the pictures that each group of classes has, `[10]`."""
        shares: Floats = self.counts[CLASS] / max(self.counts[CLASS].sum(), 1e-300)
        return shares


def count_sample(seen: Sequence[Seen], thinned: float = 1.0) -> Sample:
    """Counts what belongs to the random sample; of the others nothing.

    Args:
        thinned: how many times as many the sample has as `seen` has of it.
    """
    sample = [each for each in seen if each.weight > 0 and each.group is not None]
    weights = np.array([each.weight for each in sample], dtype=np.float64)
    total = float(weights.sum())
    worth = total**2 / float((weights**2).sum()) if total else 0.0
    scale = worth / total if total else 0.0
    tables = {name: np.zeros((BINS, BINS)) for name in NAMES}
    for each in sample:
        for name, place in each.bins.items():
            if name in tables and each.group is not None:
                tables[name][each.group, place] += each.weight * scale
    return Sample(len(sample), total * thinned, worth, tables, {name: table.sum(0) for name, table in tables.items()})


def take_as_reference(sample: Sample, reference: Reference) -> Reference:
    """Makes a reference of another time's sample, with the bins and groups of `reference`."""
    counts = {name: np.rint(sample.tables[name]).astype(np.int64) for name in STATISTICS}
    images = max(1, int(counts["confidence"].sum()))
    return replace(reference, images=images, counts=counts, attention={})


def judge_sample(sample: Sample, reference: Reference) -> dict[str, Drift]:
    """Compares a sample with a reference, statistic by statistic: see `drift.judge`."""
    return judge(sample.counts, reference)


def find_ratios(drifts: Mapping[str, Drift], reference: Reference) -> dict[str, Floats]:
    """Finds how much likelier each bin is among the pictures that came in addition than it was in a class group, as a logarithm.

    What came in addition is, for all groups together, the part of now that is more than was to be expected, `max(now - expected,
    0)`, made to add up to 1; each bin gets its standard error as well, so that chance alone looks like nothing. Before is the
    bin's share in the reference among the pictures of the group, with half a picture added. Only the first is estimated of now:
    a sample of twenty pictures tells nothing of each group.

    Returns:
        By statistic `[group, bin]`; 0 where the reference has nothing of the group to compare with.
    """
    ratios = {}
    for name, drift in drifts.items():
        images = max(1, drift.images)
        added = np.maximum(drift.now - drift.expected, 0) + np.sqrt(np.maximum(drift.expected, 1 / images) / images)
        if name == CLASS:
            shares, known = np.tile(reference.group_images / reference.images, (BINS, 1)), np.full((BINS, 1), reference.images)
        else:
            shares, known = reference.shares(name), reference.known_images[:, None]
        before = (shares * known + 0.5) / (shares.sum(1, keepdims=True) * known + 0.5 * BINS)
        ratios[name] = np.where(shares.any(1, keepdims=True), np.log(added / added.sum() / before), 0.0)
    return ratios


def rate(seen: Seen, name: str, drifts: Mapping[str, Drift], ratios: Mapping[str, Floats]) -> float:
    """Rates how likely a picture is one of those that moved the statistic `name`: larger is likelier, and that is all it says.

    It is the sum of `find_ratios` over all statistics, as if they were independent given the class (naive Bayes); `name` counts
    fully, the others by the square of PSI over its threshold, at most 1, so that those that have not drifted say nothing. What
    moved one statistic mostly moved others as well; a picture of the same bin that was always there moved none.
    """
    group = UNSEEN if seen.group is None else seen.group
    total = 0.0
    for each, drift in drifts.items():
        if each in seen.bins:
            weight = 1.0 if each == name else min(1.0, drift.psi / drift.threshold) ** 2
            total += weight * float(ratios[each][group, seen.bins[each]])
    return round(total, 3)
