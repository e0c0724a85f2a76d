"""Statistics of maps, of scores and of the model's input: a few numbers for each picture, whose drift is watched. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config

Floats = NDArray[np.float64]

MAP_STATISTICS = ("entropy", "area", "centroid_x", "centroid_y", "border", "overlap", "peak")
SCORE_STATISTICS = ("confidence", "margin")
INPUT_STATISTICS = ("brightness", "contrast", "sharpness", "width", "height")
STATISTICS: Mapping[str, str] = MappingProxyType(
    {
        "entropy": "entropy of the map over that of an even map: 0 one cell, 1 spread evenly",
        "area": "share of the cells with at least half the maximum, before the map is scaled",
        "centroid_x": "where the map's centre lies: 0 left edge of the view, 1 right edge",
        "centroid_y": "where the map's centre lies: 0 upper edge of the view, 1 lower edge",
        "border": "share of the map in the outer tenth on each side of the view",
        "overlap": "what the maps of the two most probable classes have in common: 0 nothing, 1 all",
        "peak": "log10 of the map's maximum, before it is scaled",
        "confidence": "probability of the most probable class; of scores that are values, the first value",
        "margin": "by how much it exceeds the next class's; values have none",
        "brightness": "mean of the model's input, as a share of white",
        "contrast": "standard deviation of the model's input, as a share of white",
        "sharpness": "mean difference of neighbouring pixels of the model's input, over its contrast",
        "width": "of the picture, in pixels",
        "height": "of the picture, in pixels",
    }
)
"""Every statistic by name, with its meaning."""

BORDER = 0.1
"""Width of the border, as a share of the view's side."""


@dataclass(frozen=True)
class Scale:
    """How the model's input was normalised: it is `(picture - mean) / std`, channel by channel, of a picture from 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def of(cls, config: Config) -> Scale:
        """Returns what `scale`, `mean` and `std` of a configuration come to."""
        mean, std = ([number / config.scale for number in numbers] for numbers in (config.mean, config.std))
        return cls(mean, std)


def map_statistics(maps: NDArray[np.float32], runner_ups: NDArray[np.float32]) -> dict[str, Floats]:
    """Computes `MAP_STATISTICS`, each `[M]`, of M maps.

    With p the map divided by its sum, and x the cells' centres in [0, 1]: the entropy is `-sum p ln p / ln(h w)`, the centroid
    `sum p x`, the overlap with the runner-up's map q `sum min(p, q)` (histogram intersection). A cell that lies partly in the
    border counts for the border by its area there.

    Args:
        maps: raw maps of the most probable class, `[M, h, w]`, at least 0, none of them degenerate.
        runner_ups: those of the second most probable class, `[M, h, w]`, NaN where there is none; where such a map is zero or
            not finite, the overlap is NaN.
    """
    count, height, width = maps.shape
    flat = maps.reshape(count, -1).astype(np.float64)
    peak = flat.max(1)
    shares = flat / flat.sum(1, keepdims=True)
    grid = shares.reshape(maps.shape)
    columns, rows = grid.sum(1), grid.sum(2)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    inside = np.einsum("mhw,h,w->m", grid, _inner(height), _inner(width))
    return {
        "entropy": -(shares * logs).sum(1) / np.log(height * width),
        "area": (flat >= peak[:, None] / 2).mean(1),
        "centroid_x": columns @ _centres(width),
        "centroid_y": rows @ _centres(height),
        "border": 1 - inside,
        "overlap": np.minimum(shares, _normalise(runner_ups)).sum(1),
        "peak": np.log10(peak),
    }


def _normalise(maps: NDArray[np.float32]) -> Floats:
    """Divides each map by its sum, `[M, h w]`; NaN where that is 0 or not finite."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shares: Floats = flat / flat.sum(1, keepdims=True)
    return shares


def _centres(cells: int) -> Floats:
    return (np.arange(cells) + 0.5) / cells


def _inner(cells: int) -> Floats:
    """Computes which share of each cell, on one axis, lies inside the border, `[cells]`."""
    edges = np.clip(np.arange(cells + 1) / cells, BORDER, 1 - BORDER)
    return np.diff(edges) * cells


def score_statistics(confidence: Sequence[float], runner_up: Sequence[float]) -> dict[str, Floats]:
    """Computes confidence and margin, each `[M]`, of the two most probable classes' probabilities, 0 to 1."""
    first, second = np.asarray(confidence, dtype=np.float64), np.asarray(runner_up, dtype=np.float64)
    return {"confidence": first, "margin": first - second}


def input_statistics(rows: NDArray[np.float32], scale: Scale | None) -> dict[str, Floats]:
    """Computes brightness, contrast and sharpness, each `[M]`, of rows `[M, C, r, W]` of the model's input.

    Grey is the mean of the channels, brought back to [0, 1] by `scale`. Without a scale, or where it has another number of
    channels, the input is taken as it is. A picture of one colour has no sharpness (NaN).
    """
    if scale is None or len(scale.std) != rows.shape[1]:
        scale = Scale((0.0,) * rows.shape[1], (1.0,) * rows.shape[1])
    grey = np.einsum("mcrw,c->mrw", rows, np.asarray(scale.std, dtype=np.float32) / rows.shape[1]) + np.float32(
        np.mean(scale.mean)
    )
    contrast = grey.std((1, 2), dtype=np.float64)
    steps = np.abs(np.diff(grey, axis=2)).mean((1, 2), dtype=np.float64) if grey.shape[2] > 1 else np.zeros(len(grey))
    with np.errstate(invalid="ignore", divide="ignore"):
        sharpness = np.where(contrast > 1e-4, steps / contrast, np.nan)
    return {"brightness": grey.mean((1, 2), dtype=np.float64), "contrast": contrast, "sharpness": sharpness}
