"""Computes the statistics of many observations at once. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.explain.degenerate import find_degenerate
from camserve.explain.observer import Observation
from camserve.monitoring.statistics import STATISTICS, Scale, input_statistics, map_statistics, score_statistics


@dataclass(frozen=True)
class Measurements:
    """Statistics of M pictures.

    Attributes:
        values: by the names of `STATISTICS`, each `[M]`, float64; NaN where a picture does not have the statistic.
        targets: index of the most probable class.
        reasons: why the map says nothing, one of `degenerate.REASONS`; "" where it says something.
    """

    values: dict[str, NDArray[np.float64]]
    targets: list[int]
    reasons: list[str]


def measure(observations: Sequence[Observation], scale: Scale | None) -> Measurements:
    """Computes the statistics of M pictures, those of equal shapes together.

    Args:
        observations: M of them, of any sizes.
        scale: how the model's input was normalised; None: not known.
    """
    values = {name: np.full(len(observations), np.nan) for name in STATISTICS}
    scores = [observation.scores for observation in observations]
    values |= score_statistics([first[1] for first, *_ in scores], [each[1][1] if len(each) > 1 else 0.0 for each in scores])
    sizes = np.array([observation.size for observation in observations], dtype=np.float64).reshape(-1, 2)
    values["width"], values["height"] = sizes[:, 0], sizes[:, 1]
    reasons = [""] * len(observations)
    with np.errstate(all="ignore"):
        for places in _group(observation.rows.shape for observation in observations):
            _put(values, input_statistics(np.stack([observations[place].rows for place in places]), scale), places)
        for places in _group(observation.maps[0].shape for observation in observations):
            for place, reason in zip(
                places, find_degenerate(np.stack([observations[each].maps[0] for each in places])), strict=True
            ):
                reasons[place] = reason
            good = [place for place in places if not reasons[place]]
            if good:
                maps = np.stack([observations[place].maps[0] for place in good])
                _put(values, map_statistics(maps, np.stack([_runner_up(observations[place]) for place in good])), good)
    return Measurements(values, [observation.scores[0][0] for observation in observations], reasons)


def _runner_up(observation: Observation) -> NDArray[np.float32]:
    return observation.maps[1] if len(observation.maps) > 1 else np.full_like(observation.maps[0], np.nan)


def _group(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """Groups the places of equal shapes."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(place)
    return list(groups.values())


def _put(values: dict[str, NDArray[np.float64]], parts: dict[str, NDArray[np.float64]], places: list[int]) -> None:
    for name, part in parts.items():
        values[name][places] = np.where(np.isfinite(part), part, np.nan)
