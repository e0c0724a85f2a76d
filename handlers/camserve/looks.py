"""What is kept of a picture until it is measured, and the measuring of many at once. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.mapstats import STATISTICS, Scale, degenerate, input_statistics, map_statistics, score_statistics

ROWS = 16
"""Of about how many rows of the input, evenly spread, its statistics are taken."""


@dataclass(frozen=True)
class Look:
    """What is kept of one picture until it is measured.

    Attributes:
        maps: the raw maps `[h, w]` of the most probable class and of the next, where it was made.
        rows: some rows of the model's input, see `rows_of`.
        scores: (class index, probability) of the most probable class and of the next, where there is one.
        size: (width, height) of the picture.
    """

    maps: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.float32]
    scores: tuple[tuple[int, float], ...]
    size: tuple[int, int]


def rows_of(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows `[C, r, W]` of the model's input `[C, H, W]`, copied."""
    return picture[:, :: max(1, picture.shape[1] // ROWS)].copy()


@dataclass(frozen=True)
class Measured:
    """Statistics of M pictures: `values` by name, `[M]`, NaN where there is none; `reasons` says which maps say nothing."""

    values: dict[str, NDArray[np.float64]]
    targets: list[int]
    reasons: list[str]


def measure(looks: Sequence[Look], scale: Scale | None) -> Measured:
    """The statistics of pictures, those of equal sizes together."""
    values = {name: np.full(len(looks), np.nan) for name in STATISTICS}
    confidences = [look.scores[0][1] for look in looks]
    values |= score_statistics(confidences, [look.scores[1][1] if len(look.scores) > 1 else 0.0 for look in looks])
    sizes = np.array([look.size for look in looks], dtype=np.float64).reshape(-1, 2)
    values["width"], values["height"] = sizes[:, 0], sizes[:, 1]
    reasons = [""] * len(looks)
    with np.errstate(all="ignore"):
        for places in _alike(look.rows.shape for look in looks):
            _put(values, input_statistics(np.stack([looks[place].rows for place in places]), scale), places)
        for places in _alike(look.maps[0].shape for look in looks):
            found = degenerate(np.stack([looks[place].maps[0] for place in places]))
            for place, reason in zip(places, found, strict=True):
                reasons[place] = reason
            good = [place for place in places if not reasons[place]]
            if good:
                maps = np.stack([looks[place].maps[0] for place in good])
                _put(values, map_statistics(maps, np.stack([_rival(looks[place]) for place in good])), good)
    return Measured(values, [look.scores[0][0] for look in looks], reasons)


def _rival(look: Look) -> NDArray[np.float32]:
    return look.maps[1] if len(look.maps) > 1 else np.full_like(look.maps[0], np.nan)


def _alike(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """The places of equal shapes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return list(found.values())


def _put(values: dict[str, NDArray[np.float64]], found: dict[str, NDArray[np.float64]], places: list[int]) -> None:
    for name, part in found.items():
        values[name][places] = np.where(np.isfinite(part), part, np.nan)
