"""The drift of what was measured in one window, and that against the reference as a whole, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import CLASS, Reference
from camserve.tools.watching.evidence.numbers.drift import Floats, judge, psi_terms


@dataclass(frozen=True)
class Drift:
    """For each statistic PSI at the window's class mix, PSI against the reference as a whole, the threshold, and of how many."""

    psi: dict[str, float]
    unadjusted: dict[str, float]
    threshold: dict[str, float]
    images: dict[str, int]
    alarms: list[str]
    """The statistics whose PSI is above its threshold, where there are enough pictures."""


def psi(ratio: Floats, reference: Floats) -> float:
    """`sum (q - p) ln(q / p)` of two sets of shares."""
    return float(psi_terms(ratio, reference).sum())


def drift(found: Measurements, reference: Reference) -> Drift:
    """The drift of what was measured in one window."""
    judged = judge(reference.count(found), reference)
    whole = {name: reference.table(name).sum(0) for name in judged if name != CLASS} | {CLASS: reference.group_images}
    return Drift(
        {name: each.psi for name, each in judged.items()},
        {name: psi(each.now, whole[name] / whole[name].sum()) for name, each in judged.items()},
        {name: each.threshold for name, each in judged.items()},
        {name: each.images for name, each in judged.items()},
        [name for name, each in judged.items() if each.drifted],
    )
