"""How much two explanations of one picture agree: of the class, and of where on the picture the models looked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.core.text import listed
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import Result
from camserve.tools.console import ToolError

GRID = 32
"""Points a side at which both heatmaps are read, over what both models saw."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Two models on one picture. The heatmaps are of one class; their measures are None where one of them says nothing.

    Attributes:
        first, second: the predicted labels.
        changed: the predicted classes differ.
        target, index: the compared class's label, and its index in the first model, which predicts it.
        silent: only the second heatmap says nothing.
        confidence: by how much the probability of the compared class differs, 0 to 1.
        rank: Spearman's correlation of the two heatmaps, -1 to 1.
        overlap: intersection over union of where each is at least half its maximum, 0 to 1.
        shift: distance of their centroids, as a share of the diagonal of what both models saw, 0 to 1.
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


def compared(file: str, first: Result, second: Result) -> Agreement:
    """The agreement of two results whose first explanations are of one class: the one that the first model predicts."""
    one, other = first.explanations[0], second.explanations[0]
    rank, overlap, shift = None, None, None
    speaks = [not one.warnings, not other.warnings]
    common = _common(first, second)
    if all(speaks) and common is not None:
        maps = read(one.heatmap, _view(first), common), read(other.heatmap, _view(second), common)
        speaks = [bool(np.ptp(each) > 0) for each in maps]  # it may say something, and not where both looked
        if all(speaks):
            rank, overlap, shift = spearman(*maps), half_overlap(*maps), centroid_shift(*maps)
    confidence = abs(one.probability - other.probability)
    predicted = first.predictions[0], second.predictions[0]
    changed = (predicted[0].index, predicted[1].index) != (one.target, other.target)
    silent = speaks == [True, False]
    return Agreement(
        file, predicted[0].label, predicted[1].label, changed, one.label, one.target, confidence, silent, rank, overlap, shift
    )


class Classes:
    """Which class of the second model is a class of the first: by its label where both have labels, otherwise by its index.

    Raises:
        ToolError: one of them has no labels, and they have different numbers of classes.
    """

    def __init__(self, first: Labels, second: Labels) -> None:
        self._first = first
        self._second = second
        self._counts = Counter(first.names)
        self._places: dict[str, list[int]] = {}
        for index, name in enumerate(second.names):
            self._places.setdefault(name, []).append(index)
        self.by_label = first.given and second.given
        if not self.by_label and len(first) != len(second):
            raise ToolError(
                f"the first has {len(first)} classes and the second {len(second)}: without labels in both, nobody can tell which "
                "of them are the same"
            )

    def second(self, index: int) -> int:
        """The second model's index of a class of the first.

        Raises:
            CamserveError: it has no such class, or it cannot be told which of several it is.
        """
        label = self._first[index]
        if not self.by_label or (index < len(self._second) and self._second[index] == label):
            return index
        places = self._places.get(label, [])
        if not places:
            raise CamserveError(None, "UnknownLabel", f"the second has no class {label!r}")
        if len(places) > 1 or self._counts[label] > 1:
            raise CamserveError(
                None, "UnknownLabel", f"several classes have the label {label!r}, and the two order them differently"
            )
        return places[0]

    def told(self) -> str:
        """How the classes of the two differ; "" where they do not."""
        if self._first.given != self._second.given:
            return "One of them has no labels: classes are compared by their index"
        if not self.by_label or self._first.names == self._second.names:
            return ""
        moved, lacking = 0, []
        for index, label in enumerate(self._first.names):
            try:
                moved += self.second(index) != index
            except CamserveError:
                lacking.append(label)
        words = f"Classes are compared by their label; {moved} of {len(self._first)} have another index in the second"
        without = f"; pictures of these are not compared, and count as failed: {listed(lacking)}" if lacking else ""
        return f"{words}, {len(lacking)} no counterpart{without}"


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
class Run:
    """All pictures that the first model answers: the agreement on each, and how many the second does not answer."""

    rows: Sequence[Agreement]
    failed: int = 0


@dataclass(frozen=True)
class Limit:
    """One figure of the whole run that `--max-...` may bound: of what, and how it is made; None: nothing to measure.

    Where only the second model's heatmap says nothing, it counts as if it had nothing in common with the first's.
    """

    name: str
    meaning: str
    value: Callable[[Run], float | None]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _loss(values: Iterable[float | None]) -> float | None:
    median = _median(values)
    return None if median is None else 1 - median


def _share(several: Sequence[bool], of: int) -> float | None:
    return sum(several) / of if of else None


FAILED = "failed"
"""The limit that is 0 where it is not given and another one is: no gate may open because a model fails."""

LIMITS = (
    Limit(
        FAILED,
        "share of the pictures that the first answers and the second does not",
        lambda run: _share([True] * run.failed, len(run.rows) + run.failed),
    ),
    Limit(
        "changed",
        "share of the pictures whose predicted class changed",
        lambda run: _share([row.changed for row in run.rows], len(run.rows)),
    ),
    Limit(
        "confidence",
        "median change of the compared class's probability",
        lambda run: _median(row.confidence for row in run.rows),
    ),
    Limit(
        "silent",
        "share of the pictures on which only the second's heatmap says nothing",
        lambda run: _share([row.silent for row in run.rows], len(run.rows)),
    ),
    Limit(
        "rank-loss",
        "1 minus the median rank correlation of the heatmaps",
        lambda run: _loss(0.0 if row.silent else row.rank for row in run.rows),
    ),
    Limit(
        "overlap-loss",
        "1 minus the median overlap of the heatmaps at half maximum",
        lambda run: _loss(0.0 if row.silent else row.overlap for row in run.rows),
    ),
    Limit(
        "shift",
        "median shift of the heatmaps' centroid, of the diagonal",
        lambda run: _median(1.0 if row.silent else row.shift for row in run.rows),
    ),
)
