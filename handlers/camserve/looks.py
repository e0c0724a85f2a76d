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

    `map` and `rival` are the raw maps `[h, w]` of the most probable class, `target`, and of the next (None: not computed), and
    `confidence` and `runner_up` their probabilities. `rows` is `[C, r, W]` of the model's input; `width` and `height` are the
    picture's.
    """

    map: NDArray[np.float32]
    rival: NDArray[np.float32] | None
    rows: NDArray[np.float32]
    target: int
    confidence: float
    runner_up: float
    width: int
    height: int


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
    values |= score_statistics([look.confidence for look in looks], [look.runner_up for look in looks])
    values["width"] = np.array([look.width for look in looks], dtype=np.float64)
    values["height"] = np.array([look.height for look in looks], dtype=np.float64)
    reasons = [""] * len(looks)
    with np.errstate(all="ignore"):
        for places in _alike(look.rows.shape for look in looks):
            rows = np.stack([looks[place].rows for place in places])
            _put(values, input_statistics(rows, scale), places)
        for places in _alike(look.map.shape for look in looks):
            found = degenerate(np.stack([looks[place].map for place in places]))
            for place, reason in zip(places, found, strict=True):
                reasons[place] = reason
            good = [place for place, reason in zip(places, found, strict=True) if not reason]
            if good:
                maps = np.stack([looks[place].map for place in good])
                _put(values, map_statistics(maps, np.stack([_rival(looks[place]) for place in good])), good)
    return Measured(values, [look.target for look in looks], reasons)


def _rival(look: Look) -> NDArray[np.float32]:
    return look.rival if look.rival is not None else np.full_like(look.map, np.nan)


def _alike(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """The places of equal shapes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return list(found.values())


def _put(values: dict[str, NDArray[np.float64]], found: dict[str, NDArray[np.float64]], places: list[int]) -> None:
    for name, part in found.items():
        values[name][places] = np.where(np.isfinite(part), part, np.nan)
