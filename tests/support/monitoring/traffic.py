"""Made-up traffic of some classes, and references of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import (
    Provenance,
    Reference,
)
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS
from camserve.tools.watching.baseline import build_reference

SKEWED = {
    "98 to 2 %": [0] * 980 + [1] * 20,
    "a class, and 20 that came up once": [0] * 980 + list(range(1, 21)),
    "a class, and 20 that came up twice": [0] * 960 + list(range(1, 21)) * 2,
    "three classes and a rare one": [0] * 500 + [1] * 330 + [2] * 150 + [3] * 20,
    "all came up once": list(range(200)),
    "98 to 2 % of few": [0] * 98 + [1] * 2,
}


def traffic(targets: Any, random: np.random.Generator, fault: Any = ()) -> Measurements:
    """Made-up pictures of these classes; each class has its own place in every statistic; of some classes most maps say nothing."""
    targets = np.asarray(targets)
    values = {name: random.normal(targets * 0.37 % 1, 0.5) for name in STATISTICS}
    silent = np.isin(targets, fault) & (random.random(len(targets)) < 0.8)
    for name in MAP_STATISTICS:
        values[name][silent] = np.nan
    return Measurements(values, targets.tolist(), ["zero" if each else "" for each in silent])


def reference_of(targets: Any, seed: int = 0, fault: Any = ()) -> Reference:
    """The reference of such pictures."""
    return build_reference(traffic(targets, np.random.default_rng(seed), fault), [None] * len(targets), Provenance("l", "m", "w"))


def zipf(classes: int) -> Any:
    """Probabilities by Zipf's law."""
    weights = 1 / np.arange(1, classes + 1)
    return weights / weights.sum()


def found_nothing(pictures: int) -> dict[str, Any]:
    """Statistics that no picture has."""
    return {name: np.full(pictures, np.nan) for name in STATISTICS}
