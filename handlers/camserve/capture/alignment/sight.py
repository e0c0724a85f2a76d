"""What part of the picture an early layer sees, and how it is turned: there each probe's changes still lie close together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from camserve.capture.alignment.places import Place
from camserve.capture.survey.layout import UPRIGHT, Turn

WHOLE = (0.0, 1.0)
"""All of an axis, in shares of the picture."""

FEWEST = 4
"""Least number of probes that tell a line."""

OFF_LINE = 0.04
"""How far a middle of changes may lie from its line, as a share of the layer; three of four must lie so near."""

EXACT = 0.02
"""Median distance, as a share of the layer, up to which middles lie as if all of the picture were seen, beside `OF_CELL`."""

OF_CELL = 0.4
"""What is added to that, as a share of one of the layer's cells, in which a middle may lie anywhere."""

SLOPES = (0.25, 20.0)
"""Least and largest slope of the line, in shares of the layer for one of the picture."""

CUT = 0.6
"""A probe that changes less, as a share of the median, may lie across the edge of what is seen, and its middle elsewhere."""

LOCAL = 0.15
"""Largest spread, as a share of the layer, of what a probe changes, where its place is evident."""

MOVING = 0.1
"""Least standard deviation, as a share of the layer, between the middles of what probes change, where that moves with them; if it
lay as the picture does, it would be 0.29."""

QUIET = 1e-3
"""A probe that changes a layer by less than this share of what the strongest does is not seen by it."""


@dataclass(frozen=True)
class Sight:
    """What a layer sees of the picture.

    Attributes:
        rows, columns: from where to where, in shares of the height and the width; beyond 0 and 1 where there is a border.
        turn: how its cells are turned to lie as in the picture.
    """

    rows: tuple[float, float] = WHOLE
    columns: tuple[float, float] = WHOLE
    turn: Turn = UPRIGHT

    def inside(self, places: Sequence[Place]) -> list[Place]:
        """Return where these places of the picture lie in what is seen, in shares of that."""
        (top, bottom), (left, right) = self.rows, self.columns
        return [((row - top) / (bottom - top), (column - left) / (right - left)) for row, column in places]

    def offset(self, grid: tuple[int, int]) -> float:
        """Return how far a cell of `grid` = (rows, columns) lies from where it would if all were seen, at most, in cells."""
        return max(_shift(span, count) for span, count in zip((self.rows, self.columns), grid, strict=True))


def _shift(span: tuple[float, float], cells: int) -> float:
    shares = [(cell + 0.5) / cells for cell in range(cells)]
    return max(abs(span[0] + share * (span[1] - span[0]) - share) * cells for share in shares)


def is_local(changes: Tensor) -> bool:
    """Return whether each probe changes a layer in one part of it only: where that is, is then evident.

    Args:
        changes: of one call of a layer, `[K, h, w]`.
    """
    spreads = [spread for _, spread in _middles_seen(changes)]
    return bool(spreads[0]) and all(statistics.median(spread) <= LOCAL for spread in spreads)


def is_moving(changes: Tensor) -> bool:
    """Return whether what changes moves with the probes, though each may change all of the layer: then it lies somewhere.

    Args:
        changes: of one call of a layer, `[K, h, w]`.
    """
    middles = [middle for middle, _ in _middles_seen(changes)]
    return len(middles[0]) > 1 and max(map(statistics.pstdev, middles)) >= MOVING


def count_seen(changes: Tensor) -> int:
    """Count the probes that change a call of a layer, of which `changes` `[K, h, w]` are given."""
    total = changes.double().square().sum((1, 2))
    return int((total > QUIET**2 * total.max()).sum())


def find_sight(changes: Tensor, places: Sequence[Place], *, middles: bool = False) -> Sight | None:
    """Find what a layer sees from the middles of its changes; None where these lie on no lines.

    Args:
        changes: of one call of an early layer, `[K, h, w]`, as they lie in memory.
        places: of the K probes.
        middles: whether these are middles of the layer's own cells, if it sees all of the picture.
    """
    weights = changes.double().square()
    total = weights.sum((1, 2))
    reached = (total > QUIET**2 * total.max()).nonzero().flatten()
    if len(reached) < FEWEST:
        return None
    inside = reached[total[reached] > CUT * total[reached].median()]
    seen: list[int] = (inside if len(inside) >= FEWEST else reached).tolist()
    rows, columns = (_middles(weights.sum(axis)[seen], total[seen])[0] for axis in (2, 1))
    for transposed in (False, True):
        down, across = (columns, rows) if transposed else (rows, columns)
        heights, widths = changes.shape[:0:-1] if transposed else changes.shape[1:]
        vertical, horizontal = (
            _fit([places[each][axis] for each in seen], cells, EXACT + (0 if middles else OF_CELL / count))
            for axis, (cells, count) in enumerate(((down, heights), (across, widths)))
        )
        if vertical and horizontal:
            return Sight(vertical[0], horizontal[0], Turn(transposed, vertical[1], horizontal[1]))
    return None


def _middles_seen(changes: Tensor) -> list[tuple[list[float], list[float]]]:
    """Return `_middles` down and across of what each probe changes, of those that the layer sees."""
    weights = changes.double().square()
    total = weights.sum((1, 2))
    kept = weights[total > QUIET**2 * total.max()]
    return [_middles(kept.sum(axis), kept.sum((1, 2))) for axis in (2, 1)]


def _middles(weights: Tensor, total: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean places of weights `[K, cells]`, and their standard deviations, in shares."""
    cells = weights.shape[1]
    places = (torch.arange(cells, dtype=weights.dtype) + 0.5) / cells
    shares = weights / total[:, None]
    means = (shares * places).sum(1)
    spreads = (shares * (places - means[:, None]).square()).sum(1).sqrt()
    return means.tolist(), spreads.tolist()


def _fit(places: Sequence[float], cells: Sequence[float], exact: float) -> tuple[tuple[float, float], bool] | None:
    """Fit `cell = slope * place + start` to those that lie near Theil and Sen's line; return the span and whether it is reversed.

    `exact`: median distance up to which cells lie as if all were seen.
    """
    pairs = [(a, b) for a, b in combinations(range(len(places)), 2) if abs(places[a] - places[b]) > OFF_LINE]
    if not pairs:
        return None
    slope = statistics.median((cells[a] - cells[b]) / (places[a] - places[b]) for a, b in pairs)
    start = statistics.median(cell - slope * place for place, cell in zip(places, cells, strict=True))
    near = [(place, cell) for place, cell in zip(places, cells, strict=True) if abs(cell - slope * place - start) <= OFF_LINE]
    straight = len(near) >= 0.75 * len(places) and SLOPES[0] <= abs(slope) <= SLOPES[1]
    line = statistics.linear_regression(*zip(*near, strict=True)) if straight else None
    first, last = sorted(((0 - line.intercept) / line.slope, (1 - line.intercept) / line.slope)) if line else WHOLE
    own = [1 - place for place in places] if slope < 0 else places
    apart = statistics.median(abs(cell - place) for cell, place in zip(cells, own, strict=True))
    if apart <= exact and max(abs(first), abs(1 - last)) <= 1.5 * exact:
        return WHOLE, slope < 0
    return ((first, last), slope < 0) if line else None
