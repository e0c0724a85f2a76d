"""Measures many observations at once. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.explain.degenerate import degenerate
from camserve.explain.observer import Observation
from camserve.monitoring.statistics import STATISTICS, Scale, input_statistics, map_statistics, score_statistics


@dataclass(frozen=True)
class Measured:
    """Statistics of M pictures: `values` by name, `[M]`, NaN where there is none; `reasons` says which maps say nothing."""

    values: dict[str, NDArray[np.float64]]
    targets: list[int]
    reasons: list[str]


def measure(observations: Sequence[Observation], scale: Scale | None) -> Measured:
    """The statistics of pictures, those of equal sizes together."""
    values = {name: np.full(len(observations), np.nan) for name in STATISTICS}
    scores = [observation.scores for observation in observations]
    values |= score_statistics([first[1] for first, *_ in scores], [each[1][1] if len(each) > 1 else 0.0 for each in scores])
    sizes = np.array([observation.size for observation in observations], dtype=np.float64).reshape(-1, 2)
    values["width"], values["height"] = sizes[:, 0], sizes[:, 1]
    reasons = [""] * len(observations)
    with np.errstate(all="ignore"):
        for places in _alike(observation.rows.shape for observation in observations):
            _put(values, input_statistics(np.stack([observations[place].rows for place in places]), scale), places)
        for places in _alike(observation.maps[0].shape for observation in observations):
            found = degenerate(np.stack([observations[place].maps[0] for place in places]))
            for place, reason in zip(places, found, strict=True):
                reasons[place] = reason
            good = [place for place in places if not reasons[place]]
            if good:
                maps = np.stack([observations[place].maps[0] for place in good])
                _put(values, map_statistics(maps, np.stack([_rival(observations[place]) for place in good])), good)
    return Measured(values, [observation.scores[0][0] for observation in observations], reasons)


def _rival(observation: Observation) -> NDArray[np.float32]:
    return observation.maps[1] if len(observation.maps) > 1 else np.full_like(observation.maps[0], np.nan)


def _alike(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """The places of equal shapes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return list(found.values())


def _put(values: dict[str, NDArray[np.float64]], found: dict[str, NDArray[np.float64]], places: list[int]) -> None:
    for name, part in found.items():
        values[name][places] = np.where(np.isfinite(part), part, np.nan)
