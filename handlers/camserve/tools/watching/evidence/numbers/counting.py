"""How the statistics of a time are distributed, estimated from the random sample alone; and which pictures moved them.

What was kept because it is unusual never enters an estimate: there is more of it, the stranger it is.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def find_parts(sample: Sample, reference: Reference) -> dict[str, Floats]:
    """Estimates which part of the pictures of each class group in each bin is more than was to be expected, 0 to 1.

    With n pictures now and e expected (the group's pictures times the reference's share of the bin), it is `(n - e) / (n + 1)`:
    the attributable fraction, drawn towards 0 where few pictures say so. A picture with a large part is likely one of those that
    moved the statistic; one that merely fell into the same bin, as its class always did, has a small one.

    Returns:
        By statistic `[group, bin]`.
    """
    parts = {}
    sizes = sample.counts[CLASS]
    for name in reference.statistics:
        now = sample.tables[name]
        expected = sizes[:, None] * reference.shares(name)
        parts[name] = np.clip((now - expected) / (now + 1), 0, None)
    now = sample.counts[CLASS]
    expected = now.sum() * reference.group_images / reference.images
    parts[CLASS] = np.tile(np.clip((now - expected) / (now + 1), 0, None), (BINS, 1))
    return parts


def part_of(seen: Seen, name: str, parts: dict[str, Floats]) -> float | None:
    """Returns a picture's part of what moved a statistic; None where it does not have it."""
    place = seen.bins.get(name)
    if place is None or name not in parts:
        return None
    return round(float(parts[name][UNSEEN if seen.group is None else seen.group, place]), 3)
