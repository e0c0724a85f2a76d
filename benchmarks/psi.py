"""PSI, its expectation at a class mix and its threshold, in NumPy: what deploy/prometheus/rules.yml says in PromQL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.looks import Measured
from camserve.mapstats import STATISTICS
from camserve.reference import BINS, CLASS, UNSEEN, Reference

FLOOR = 1e-4
CHI_SQUARE = 27.877  # the 0.999 point with nine degrees of freedom
LEAST_PSI = 0.1
LEAST_IMAGES = 250


@dataclass(frozen=True)
class Drift:
    """PSI at the window's class mix, against the reference as a whole, and the threshold, for each statistic."""

    psi: dict[str, float]
    unadjusted: dict[str, float]
    threshold: dict[str, float]
    images: int

    @property
    def alarms(self) -> list[str]:
        """The statistics whose PSI is above its threshold, where there are enough pictures."""
        return [name for name in self.psi if self.images >= LEAST_IMAGES and self.psi[name] > self.threshold[name]]


def psi(ratio: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """`sum (q - p) ln(q / p)` of two sets of shares, none of them taken as less than 1e-4."""
    q, p = np.maximum(ratio, FLOOR), np.maximum(reference, FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def drift(found: Measured, reference: Reference) -> Drift:
    """The drift of what was measured in one window."""
    groups = np.bincount([reference.group(target) for target in found.targets], minlength=BINS)
    mix = groups / groups.sum()
    sizes = reference.group_images.copy()
    sizes[UNSEEN] = reference.images
    inverse = float((mix[sizes > 0] ** 2 / sizes[sizes > 0]).sum())
    adjusted, plain, threshold = {}, {}, {}
    for name in STATISTICS:
        values = found.values[name][~np.isnan(found.values[name])]
        table = reference.counts[name]
        if not len(values) or not table.any():
            continue
        ratio = np.bincount(reference.bins(name, values), minlength=BINS) / len(values)
        whole = table.sum(0) / table.sum()
        each = np.array([_shares(table[group], whole) for group in range(BINS)])
        adjusted[name], plain[name] = psi(ratio, mix @ each), psi(ratio, whole)
        threshold[name] = max(LEAST_PSI, CHI_SQUARE * (1 / len(values) + inverse))
    share = reference.group_images / reference.group_images.sum()
    adjusted[CLASS] = plain[CLASS] = psi(mix, share)
    threshold[CLASS] = max(LEAST_PSI, CHI_SQUARE * (1 / len(found.targets) + 1 / reference.images))
    return Drift(adjusted, plain, threshold, len(found.targets))


def _shares(counts: NDArray[np.int64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """A group's shares; of all pictures where it has none."""
    return counts / counts.sum() if counts.any() else whole
