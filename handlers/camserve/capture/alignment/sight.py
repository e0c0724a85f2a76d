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

NOTHING = 1e-8
"""A probe that changes a layer by less than this share of what the strongest does changes nothing of it: rounding is more."""

MOVING = 0.1
"""Least standard deviation, as a share of the layer, between the middles of what probes change, where that moves with them; if it
lay as the picture does, it would be 0.29."""

FOLLOWING = 0.8
"""Least correlation, along an axis, between the places of probes and the middles of what they change, where that lies close
together; it is above 0.9 for maps that lie as the picture does, and below 0.6 for shuffled ones."""

AWAY = 1.5
"""Largest median distance, along an axis, between these, in cells; for maps that lie as the picture does it is below 1."""

COARSE = 4
"""Least number of cells along an axis on which changes lie elsewhere: on fewer, each sees most of the picture, and which one
changes most, of those that a ReLU leaves, is chance."""

EDGES = 0.005
"""A probe changes the inside of a layer alone where no more than this share of what it changes lies in the cells at both edges:
then no border pulls the middle of that inwards."""

STRAIGHT = 0.2
"""How far from the line through the middles of what such probes change these lie, the median in cells, at most."""

ODD = 0.7
"""A middle so many cells from its probe is looked at more closely. Strides put it up to about 0.6 away where nothing is cut."""

PART = 1.1
"""Cells lie over a part of the picture where that is less than all of an axis, and an edge of it lies so many cells from the
picture's, at least. Where nothing is cut, and what strides do not reach is less than a cell, it is 0.8 at most."""

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


def is_elsewhere(changes: Tensor, places: Sequence[Place]) -> bool:
    """Return whether what probes change lies close together along an axis, and not where the probes are.

    Args:
        changes: of one call of a layer, `[K, h, w]`, as it would lie in the picture.
        places: of the K probes, in shares of what it lies over. Those beside that change its edge, and tell nothing.
    """
    weights = changes.double().square()
    total = weights.sum((1, 2))
    beside = torch.tensor([not all(0 <= share <= 1 for share in place) for place in places])
    kept = ((total > QUIET**2 * total.max()) & ~beside.to(total.device)).nonzero().flatten().tolist()
    if len(kept) < FEWEST:
        return False
    for axis, cells in enumerate(changes.shape[1:]):
        middles, spreads = _middles(weights[kept].sum(2 - axis), total[kept])
        shares = [places[each][axis] for each in kept]
        if cells < COARSE or statistics.median(spreads) > LOCAL or statistics.pstdev(shares) < MOVING:
            continue
        away = statistics.median(abs(middle - share) * cells for middle, share in zip(middles, shares, strict=True))
        if away > AWAY or statistics.pstdev(middles) == 0 or statistics.correlation(middles, shares) < FOLLOWING:
            return True
    return False


def find_unseen(changes: Tensor, share: float = QUIET) -> list[bool]:
    """Tell which probes change less of a call of a layer, `changes` `[K, h, w]`, than this share of what the strongest does."""
    total = changes.double().square().sum((1, 2))
    unseen: list[bool] = (total <= share**2 * total.max()).tolist()
    return unseen


def count_lost(changes: Tensor, places: Sequence[Place]) -> int:
    """Count the probes that a call of a layer does not see, of which `changes` `[K, h, w]` are given.

    Where a part of the picture is cut off, all of them lie outside of the smallest upright rectangle around those that are seen;
    or they change nothing at all. A deep network may answer some that lie among the others by very little.
    """
    unseen = find_unseen(changes)
    seen = [place for place, missed in zip(places, unseen, strict=True) if not missed]
    spans = [(min(shares), max(shares)) for shares in zip(*seen, strict=True)]
    missing = (place for place, missed in zip(places, unseen, strict=True) if missed)
    outside = sum(any(not low <= share <= high for share, (low, high) in zip(place, spans, strict=True)) for place in missing)
    return max(outside, sum(find_unseen(changes, NOTHING)))


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


def is_off(changes: Tensor, places: Sequence[Place]) -> bool:
    """Return whether what some probe changes inside of a map lies elsewhere than it does.

    Args:
        changes: of one call of a layer, `[K, h, w]`, as they would lie over all of the picture.
        places: of the K probes.
    """
    sides = zip(_middles_inside(changes, places), changes.shape[1:], strict=True)
    return any(abs(middle - place) * count > ODD for inside, count in sides for place, middle in inside)


def find_part(changes: Tensor, places: Sequence[Place]) -> Sight | None:
    """Find over which part of the picture a map lies; None where it may well lie over all, or nothing tells it.

    Args:
        changes, places: as `is_off` takes them.
    """
    spans, less = [], False
    for inside, count in zip(_middles_inside(changes, places), changes.shape[1:], strict=True):
        if len({round(place, 3) for place, _ in inside}) < FEWEST:
            return None
        start, slope, rest = fit_line(*zip(*inside, strict=True))
        if rest * count > STRAIGHT or not SLOPES[0] <= slope <= SLOPES[1]:
            return None
        low, high = -start / slope, (1 - start) / slope
        less |= slope > 1 and max(-low, low, 1 - high, high - 1) * count > PART
        spans.append((low, high))
    return Sight(spans[0], spans[1]) if less else None


def _middles_inside(changes: Tensor, places: Sequence[Place]) -> list[list[tuple[float, float]]]:
    """Return, down and across, where probes lie that change the inside of a layer alone, and the middle of what each changes."""
    weights = changes.double().square()
    total = weights.sum((1, 2))
    kept = (total > QUIET**2 * total.max()).nonzero().flatten().tolist()
    found = []
    for axis in (0, 1):
        sums = weights[kept].sum(2 - axis)
        ends = ((sums[:, 0] + sums[:, -1]) / total[kept]).tolist()
        middles, _ = _middles(sums, total[kept])
        found.append([(places[k][axis], middle) for k, end, middle in zip(kept, ends, middles, strict=True) if end <= EDGES])
    return found


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


def fit_line(places: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Fit `value = start + slope * place` by Theil and Sen's medians; return start, slope and the median distance from it."""
    pairs = [(a, b) for a, b in combinations(range(len(places)), 2) if abs(places[a] - places[b]) > OFF_LINE]
    slope = statistics.median((values[a] - values[b]) / (places[a] - places[b]) for a, b in pairs) if pairs else 0.0
    start = statistics.median(value - slope * place for place, value in zip(places, values, strict=True))
    rest = statistics.median(abs(value - slope * place - start) for place, value in zip(places, values, strict=True))
    return start, slope, rest


def _fit(places: Sequence[float], cells: Sequence[float], exact: float) -> tuple[tuple[float, float], bool] | None:
    """Fit `cell = slope * place + start` to those that lie near Theil and Sen's line; return the span and whether it is reversed.

    `exact`: median distance up to which cells lie as if all were seen.
    """
    if max(places) - min(places) <= OFF_LINE:
        return None
    start, slope, _ = fit_line(places, cells)
    near = [(place, cell) for place, cell in zip(places, cells, strict=True) if abs(cell - slope * place - start) <= OFF_LINE]
    straight = len(near) >= 0.75 * len(places) and SLOPES[0] <= abs(slope) <= SLOPES[1]
    line = statistics.linear_regression(*zip(*near, strict=True)) if straight else None
    first, last = sorted(((0 - line.intercept) / line.slope, (1 - line.intercept) / line.slope)) if line else WHOLE
    own = [1 - place for place in places] if slope < 0 else places
    apart = statistics.median(abs(cell - place) for cell, place in zip(cells, own, strict=True))
    if apart <= exact and max(abs(first), abs(1 - last)) <= 1.5 * exact:
        return WHOLE, slope < 0
    return ((first, last), slope < 0) if line else None
