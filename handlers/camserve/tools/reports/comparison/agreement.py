"""Measures how much two models agree on one picture: on the class, and on where they look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.core.geometry import Rect
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import Result

GRID = 32
"""Both heatmaps are sampled at this many points a side, over what both models saw."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The agreement of two models on one picture. Both heatmaps are of the class that the first model predicts.

    Rank, overlap and shift are None where one of the heatmaps says nothing.

    Attributes:
        file: the picture.
        first, second: the predicted labels.
        changed: the predicted classes differ; of several labels at once, those that reach the threshold.
        target, index: the compared class's label, and its index in the first model.
        confidence: difference of the compared class's probability, 0 to 1, or of its value.
        silent: only the second heatmap says nothing (zero, constant or not finite).
        rank: Spearman's rank correlation of the heatmaps, -1 to 1.
        overlap: intersection over union of the areas with at least half the maximum, 0 to 1.
        shift: distance of the centroids, as a share of the diagonal of what both models saw, 0 to 1.
        inside: which share of the second's map lies inside the picture's annotated area; 0 where the map says nothing, None where
            there is no area.
    """

    file: str
    first: str
    second: str
    changed: bool
    target: str
    index: int
    confidence: float
    silent: bool
    rank: float | None
    overlap: float | None
    shift: float | None
    inside: float | None = None


def compare(file: str, first: Result, second: Result, match: Callable[[int], int] = int, *, annotated: bool = False) -> Agreement:
    """Compares two results whose first explanations are of one class: the one that the first model predicts.

    Args:
        match: finds the second model's index of a class of the first's; raises CamserveError where it has none.
        annotated: the picture has an annotated area, of which the second was asked.
    """
    one, other = first.explanations[0], second.explanations[0]
    rank, overlap, shift = None, None, None
    speaks = [not one.warnings, not other.warnings]
    common = _common(first, second)
    if all(speaks) and common is not None:
        maps = resample(one.heatmap, _view(first), common), resample(other.heatmap, _view(second), common)
        speaks = [bool(np.ptp(each) > 0) for each in maps]  # it may say something only where one looked
        if all(speaks):
            rank, overlap, shift = spearman(*maps), half_overlap(*maps), centroid_shift(*maps)
    confidence = abs(one.probability - other.probability)
    predicted = first.predictions[0], second.predictions[0]
    changed = (predicted[0].index, predicted[1].index) != (one.target, other.target)
    if first.scores == "sigmoid" or second.scores == "sigmoid":
        changed = _match_all(first.counting, match) != second.counting
    silent = speaks == [True, False]
    labels = predicted[0].label, predicted[1].label
    share = other.inside.share if other.inside else 0.0 if annotated else None
    return Agreement(file, *labels, changed, one.label, one.target, confidence, silent, rank, overlap, shift, share)


def _match_all(indices: set[int], match: Callable[[int], int]) -> set[int]:
    """Finds the second model's indices of several classes of the first; -1 stands for those that it does not have."""
    matched = set()
    for index in indices:
        try:
            matched.add(match(index))
        except CamserveError:
            matched.add(-1)
    return matched


def _view(result: Result) -> Rect:
    """Returns what the model saw of the picture; all of it where the archive does not know."""
    if result.view is not None:
        return result.view
    width, height = result.size or (1, 1)
    return Rect(0, 0, width, height)


def _common(first: Result, second: Result) -> Rect | None:
    """Returns what both models saw; None where there is nothing."""
    one, other = _view(first), _view(second)
    both = Rect(max(one.left, other.left), max(one.top, other.top), min(one.right, other.right), min(one.bottom, other.bottom))
    return both if both.left < both.right and both.top < both.bottom else None


def resample(heatmap: NDArray[np.float32], view: Rect, area: Rect, points: int = GRID) -> Floats:
    """Samples a heatmap `[h, w]`, which covers `view`, at the centres of `points` x `points` cells of `area`.

    Interpolation is bilinear with half-pixel centres, clamped at the border.

    Args:
        heatmap: values in [0, 1].
        view, area: in pixels of the picture.

    Returns:
        `[points, points]`, float64.
    """
    rows = _weights(heatmap.shape[0], (view.top, view.bottom), (area.top, area.bottom), points)
    columns = _weights(heatmap.shape[1], (view.left, view.right), (area.left, area.right), points)
    samples: Floats = rows @ heatmap.astype(np.float64) @ columns.T
    return samples


def _weights(cells: int, view: tuple[float, float], area: tuple[float, float], points: int) -> Floats:
    """Computes how much of each cell a point takes, `[points, cells]`; rows sum to 1."""
    places = area[0] + (np.arange(points) + 0.5) / points * (area[1] - area[0])
    at = np.clip((places - view[0]) / (view[1] - view[0]) * cells - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    weights = np.zeros((points, cells))
    weights[np.arange(points), low] = 1 - (at - low)
    weights[np.arange(points), np.minimum(low + 1, cells - 1)] += at - low
    return weights


def spearman(one: Floats, other: Floats) -> float | None:
    """Computes Spearman's rank correlation, -1 to 1, of two maps `[h, w]`, ties at their mean rank; None if one is constant."""
    ranks = [_ranks(each.ravel()) for each in (one, other)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    one, other = (each - each.mean() for each in ranks)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def _ranks(values: Floats) -> Floats:
    """Ranks values `[n]` from 1, ties at their mean rank."""
    _, place, count = np.unique(values.round(9), return_inverse=True, return_counts=True)
    last = count.cumsum()
    mean: Floats = (last - (count - 1) / 2)[place]
    return mean


def half_overlap(one: Floats, other: Floats) -> float:
    """Computes the intersection over union, 0 to 1, of the cells where two maps `[h, w]` are at least half their maximum."""
    masks = [each >= each.max() / 2 for each in (one, other)]
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def centroid_shift(one: Floats, other: Floats) -> float | None:
    """Computes the distance of two maps' centroids, as a share of the diagonal, 0 to 1; None if a map `[h, w]` is zero."""
    if one.sum() <= 0 or other.sum() <= 0:
        return None
    centres = [_centroid(each) for each in (one, other)]
    return float(np.linalg.norm(centres[0] - centres[1]) / np.sqrt(2))


def _centroid(values: Floats) -> Floats:
    """Computes (y, x), each 0 to 1, of a map `[h, w]`."""
    axes = [(np.arange(side) + 0.5) / side for side in values.shape]
    mass = values.sum()
    return np.array([values.sum(1) @ axes[0] / mass, values.sum(0) @ axes[1] / mass])
