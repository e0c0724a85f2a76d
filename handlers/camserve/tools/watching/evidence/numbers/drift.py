"""PSI, its expectation at a class mix and its threshold, in NumPy: what deploy/prometheus/rules.yml says in PromQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.monitoring.reference import CLASS, Reference

FLOOR = 1e-4
"""No share is taken as less, except in the class mix."""
CHI_SQUARE = 27.877
"""The 0.999 point of a chi-square variable with nine degrees of freedom."""
LEAST_PSI = 0.1
"""No threshold is lower."""
LEAST_IMAGES = 250
"""Of fewer pictures nothing is said."""
LEAST_MEASURED = 100
"""Nor of fewer that have the statistic."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How far one statistic of a window is from what is to be expected.

    Attributes:
        images: how many pictures of the window have it.
        now: share of them in each bin, `[10]`.
        expected: the share that is to be expected there at the window's class mix, `[10]`.
        psi: the population stability index of the two.
        threshold: what PSI hardly exceeds by chance.
        enough: the window has pictures enough to say anything.
        floor: no share is taken as less.
    """

    images: int
    now: Floats
    expected: Floats
    psi: float
    threshold: float
    enough: bool
    floor: float = FLOOR

    @property
    def drifted(self) -> bool:
        """Whether chance does not explain the difference: the alerts' condition."""
        return self.enough and self.psi > self.threshold

    @property
    def moved(self) -> Floats:
        """What each bin adds to PSI, `[10]`: with its sign, above 0 where more pictures fell than expected."""
        return np.sign(self.now - self.expected) * psi_terms(self.now, self.expected, self.floor)


def psi_terms(ratio: Floats, reference: Floats, floor: float = FLOOR) -> Floats:
    """Computes `(q - p) ln(q / p)` of each bin of two sets of shares, none of them taken as less than `floor`."""
    q, p = np.maximum(ratio, floor), np.maximum(reference, floor)
    terms: Floats = (q - p) * np.log(q / p)
    return terms


def judge(counts: Mapping[str, NDArray[Any]], reference: Reference) -> dict[str, Drift]:
    """Compares what was counted in one window with a reference.

    The mix of classes is compared with the groups' sizes, none of its shares taken as less than one picture of the reference:
    so few are as good as none there. The others are compared with what their groups' shares add up to at the window's mix.

    Args:
        counts: pictures in each bin, `[10]`, of each statistic and of the class mix, as `Reference.count` gives them. Of
            weighted pictures: as many as they are worth.

    Returns:
        By statistic; without those that no picture has, in the window or in the reference.
    """
    images = {name: float(each.sum()) for name, each in counts.items()}
    whole = images[CLASS]
    if whole <= 0:
        return {}
    mix = counts[CLASS] / whole
    known = np.maximum(reference.known_images, 1)
    found = {}
    for name in reference.statistics:
        shares = reference.shares(name)
        share = mix @ shares
        if images[name] and share.sum():
            now, expected = counts[name] / images[name], share / share.sum()
            inverse = (mix**2 / known) @ shares.sum(1) / share.sum() ** 2
            enough = whole >= LEAST_IMAGES and images[name] >= LEAST_MEASURED
            threshold = max(LEAST_PSI, CHI_SQUARE * (1 / images[name] + float(inverse)))
            found[name] = Drift(round(images[name]), now, expected, float(psi_terms(now, expected).sum()), threshold, enough)
    sizes = reference.group_images / reference.images
    floor = 1 / reference.images
    threshold = max(LEAST_PSI, CHI_SQUARE * (1 / whole + floor))
    found[CLASS] = Drift(
        round(whole), mix, sizes, float(psi_terms(mix, sizes, floor).sum()), threshold, whole >= LEAST_IMAGES, floor
    )
    return found
