"""How much two explanations of one picture agree: of the class, and of where on the picture the models looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.geometry import Rect
from camserve.tools.result import Result

GRID = 32
"""Points a side at which both heatmaps are read, over what both models saw."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Two models on one picture. The heatmaps are of one class; their measures are None where one of them says nothing.

    Attributes:
        first, second: the predicted labels.
        confidence: by how much the probability of the compared class differs, 0 to 1.
        rank: Spearman's correlation of the two heatmaps, -1 to 1.
        overlap: intersection over union of where each is at least half its maximum, 0 to 1.
        shift: distance of their centroids, as a share of the diagonal of what both models saw, 0 to 1.
    """

    file: str
    first: str
    second: str
    target: str
    confidence: float
    rank: float | None
    overlap: float | None
    shift: float | None

    @property
    def changed(self) -> bool:
        """The predicted classes differ."""
        return self.first != self.second


def compared(file: str, first: Result, second: Result) -> Agreement:
    """The agreement of two results whose first explanations are of one class."""
    one, other = first.explanations[0], second.explanations[0]
    rank, overlap, shift = None, None, None
    if not one.warnings and not other.warnings:
        common = _common(first, second)
        if common is not None:
            maps = read(one.heatmap, _view(first), common), read(other.heatmap, _view(second), common)
            rank, overlap, shift = spearman(*maps), half_overlap(*maps), centroid_shift(*maps)
    confidence = abs(one.probability - other.probability)
    labels = first.predictions[0].label, second.predictions[0].label
    return Agreement(file, *labels, one.label, confidence, rank, overlap, shift)


def _view(result: Result) -> Rect:
    """What the model saw; the whole picture where the archive does not know."""
    if result.view is not None:
        return result.view
    width, height = result.size or (1, 1)
    return Rect(0, 0, width, height)


def _common(first: Result, second: Result) -> Rect | None:
    one, other = _view(first), _view(second)
    both = Rect(max(one.left, other.left), max(one.top, other.top), min(one.right, other.right), min(one.bottom, other.bottom))
    return both if both.left < both.right and both.top < both.bottom else None


def read(heatmap: NDArray[np.float32], view: Rect, area: Rect, points: int = GRID) -> Floats:
    """The heatmap `[h, w]` over `view`, read at `points` x `points` cell centres of `area`: bilinear, half-pixel centres."""
    rows = _weights(heatmap.shape[0], (view.top, view.bottom), (area.top, area.bottom), points)
    columns = _weights(heatmap.shape[1], (view.left, view.right), (area.left, area.right), points)
    found: Floats = rows @ heatmap.astype(np.float64) @ columns.T
    return found


def _weights(cells: int, view: tuple[float, float], area: tuple[float, float], points: int) -> Floats:
    """`[points, cells]`: how much of each cell a point reads."""
    places = area[0] + (np.arange(points) + 0.5) / points * (area[1] - area[0])
    at = np.clip((places - view[0]) / (view[1] - view[0]) * cells - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    weights = np.zeros((points, cells))
    weights[np.arange(points), low] = 1 - (at - low)
    weights[np.arange(points), np.minimum(low + 1, cells - 1)] += at - low
    return weights


def spearman(one: Floats, other: Floats) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of them is constant."""
    ranks = [_ranks(each.ravel()) for each in (one, other)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    one, other = (each - each.mean() for each in ranks)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def _ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values.round(9), return_inverse=True, return_counts=True)
    last = count.cumsum()
    mean: Floats = (last - (count - 1) / 2)[place]
    return mean


def half_overlap(one: Floats, other: Floats) -> float:
    """Intersection over union of where each map is at least half its maximum."""
    masks = [each >= each.max() / 2 for each in (one, other)]
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def centroid_shift(one: Floats, other: Floats) -> float | None:
    """Distance of the centroids, as a share of the diagonal; None where a map is zero."""
    if one.sum() <= 0 or other.sum() <= 0:
        return None
    centres = [_centroid(each) for each in (one, other)]
    return float(np.linalg.norm(centres[0] - centres[1]) / np.sqrt(2))


def _centroid(values: Floats) -> Floats:
    axes = [(np.arange(side) + 0.5) / side for side in values.shape]
    mass = values.sum()
    return np.array([values.sum(1) @ axes[0] / mass, values.sum(0) @ axes[1] / mass])


@dataclass(frozen=True)
class Limit:
    """One figure of the whole run that `--max-...` may bound: of what, and how it is made; None: nothing to measure."""

    name: str
    meaning: str
    value: Callable[[Sequence[Agreement]], float | None]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _loss(values: Sequence[float | None]) -> float | None:
    median = _median(values)
    return None if median is None else 1 - median


LIMITS = (
    Limit(
        "changed",
        "share of the pictures whose predicted class changed",
        lambda rows: sum(row.changed for row in rows) / len(rows),
    ),
    Limit(
        "confidence",
        "median change of the compared class's probability",
        lambda rows: _median([row.confidence for row in rows]),
    ),
    Limit(
        "rank-loss",
        "1 minus the median rank correlation of the heatmaps",
        lambda rows: _loss([row.rank for row in rows]),
    ),
    Limit(
        "overlap-loss",
        "1 minus the median overlap of the heatmaps at half maximum",
        lambda rows: _loss([row.overlap for row in rows]),
    ),
    Limit(
        "shift",
        "median shift of the heatmaps' centroid, of the diagonal",
        lambda rows: _median([row.shift for row in rows]),
    ),
)
