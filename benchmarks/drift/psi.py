"""PSI, its expectation at a class mix and its threshold, in NumPy: what deploy/prometheus/rules.yml says in PromQL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import CLASS, Reference

FLOOR = 1e-4
CHI_SQUARE = 27.877  # the 0.999 point with nine degrees of freedom
LEAST_PSI = 0.1
LEAST_IMAGES = 250
LEAST_MEASURED = 100  # that have the statistic

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """For each statistic PSI at the window's class mix, PSI against the reference as a whole, the threshold, and of how many."""

    psi: dict[str, float]
    unadjusted: dict[str, float]
    threshold: dict[str, float]
    images: dict[str, int]

    @property
    def alarms(self) -> list[str]:
        """The statistics whose PSI is above its threshold, where there are enough pictures."""
        if self.images[CLASS] < LEAST_IMAGES:
            return []
        return [name for name in self.psi if self.images[name] >= LEAST_MEASURED and self.psi[name] > self.threshold[name]]


def psi(ratio: Floats, reference: Floats, floor: float = FLOOR) -> float:
    """`sum (q - p) ln(q / p)` of two sets of shares, none of them taken as less than `floor`."""
    q, p = np.maximum(ratio, floor), np.maximum(reference, floor)
    return float(((q - p) * np.log(q / p)).sum())


def drift(found: Measurements, reference: Reference) -> Drift:
    """The drift of what was measured in one window.

    The mix of classes is compared with the groups' sizes, none of its shares taken as less than one picture of the reference:
    so few are as good as none there. The others are compared with what their groups' shares add up to at the window's mix.
    """
    counts = reference.count(found)
    images = {name: int(each.sum()) for name, each in counts.items()}
    mix = counts[CLASS] / images[CLASS]
    known = np.maximum(reference.known_images, 1)
    adjusted, plain, threshold = {}, {}, {}
    for name in reference.statistics:
        share = mix @ reference.shares(name)
        if not images[name] or not share.sum():
            continue
        whole = reference.table(name).sum(0)
        ratio = counts[name] / images[name]
        adjusted[name], plain[name] = psi(ratio, share / share.sum()), psi(ratio, whole / whole.sum())
        inverse = (mix**2 / known) @ reference.shares(name).sum(1) / share.sum() ** 2
        threshold[name] = max(LEAST_PSI, CHI_SQUARE * (1 / images[name] + inverse))
    sizes = reference.group_images / reference.images
    adjusted[CLASS], plain[CLASS] = psi(mix, sizes, 1 / reference.images), psi(mix, sizes)
    threshold[CLASS] = max(LEAST_PSI, CHI_SQUARE * (1 / images[CLASS] + 1 / reference.images))
    return Drift(adjusted, plain, threshold, images)
