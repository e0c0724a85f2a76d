"""Lines: where along an axis of a map the cells of a later one lie, from the places at which a few of them look."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

from torch import Tensor

Span = tuple[float, float]
"""From where to where, in shares of an axis of the picture."""

Ends = tuple[int, int]
"""The first and the last place."""

FAINT = (1e-5, 1e-3, 1e-2, 1e-1)
"""A cell looks at what has this share of its largest squared slope. Means over all of a map, in norms and gates, reach everywhere
by little: of these shares the one counts with which the line is straightest."""

STRAIGHT = 0.5
"""How far from where their line says what cells look at may end, the root of the mean square: in cells, or in steps if those are
longer."""

ROUNDED = 1 / 12
"""The variance of ends, which are whole numbers, around where what a cell looks at ends."""

LEFT = 0.1
"""Largest share of the variance of these ends that the line may leave."""

WIDE = 2 / 3
"""Where cells look at more than this share of what is before them, no line shows that they are turned."""

INSIDE = 3
"""Least number of cells that tell where all lie."""

SURE = 2
"""How many standard errors a place may be nearer than it seems."""


@dataclass(frozen=True)
class Line:
    """Where cells lie along an axis of what is before them: cell `i` lies at `start + step * i`, from the middle of the first.

    Attributes:
        start, step: in cells of the map before, or in pixels; a step below 0 where the axis is reversed.
        error: the standard error of the first and the last cell's place, the larger one.
    """

    start: float = 0.0
    step: float = 1.0
    error: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether the step is of whole cells, exactly."""
        return self.error == 0 and float(self.step).is_integer()

    def after(self, other: Line) -> Line:
        """Return where the cells lie, in what is before `other`, that lie on this line in cells that lie on `other`."""
        error = math.hypot(other.step * self.error, other.error)
        return Line(other.start + other.step * self.start, other.step * self.step, error)

    def ordered(self, count: int) -> Line:
        """Return the line of so many cells in the order of what is before them."""
        return self if self.step > 0 else Line(self.start + self.step * (count - 1), -self.step, self.error)

    def covers(self, count: int, bounds: Ends) -> bool:
        """Return whether so many cells reach from end to end of a part of what is before them."""
        line = self.ordered(count)
        return line.start < bounds[0] + line.step and line.start + line.step * count > bounds[1]

    def leaves(self, cell: int, bounds: Ends) -> bool:
        """Return whether a cell lies beyond that part."""
        return not bounds[0] <= self.start + self.step * cell <= bounds[1]

    def span(self, count: int, side: int) -> Span:
        """Return over what part of an axis of `side` pixels so many cells lie."""
        return tuple((self.start + self.step * edge + 0.5) / side for edge in (-0.5, count - 0.5))  # type: ignore[return-value]

    def off(self, count: int, side: int) -> float:
        """Return how far, in cells, one of `count` lies from where it would if they lay over all of the axis; at the least."""
        ends = ((self.start + self.step * cell + 0.5) / side * count - cell - 0.5 for cell in (0, count - 1))
        return max(map(abs, ends)) - SURE * self.error / side * count


class Step(NamedTuple):
    """Where cells lie in what is before them: a line for rows and for columns; rows may lie along the columns of that."""

    rows: Line = Line()
    columns: Line = Line()
    transposed: bool = False

    def after(self, other: Step) -> Step:
        """Return where the cells lie in what is before `other`, that lie so in cells that lie as `other` says."""
        down, across = (other.columns, other.rows) if self.transposed else (other.rows, other.columns)
        return Step(self.rows.after(down), self.columns.after(across), self.transposed != other.transposed)


def find_line(most: Tensor, cells: Sequence[int], count: int, *, turned: bool = False) -> Line | None:
    """Find along an axis of `count` cells where these lie; None: what they look at is on no line, or all there is.

    Args:
        most: the largest squared slope of each cell, along the axis of what it looks at, `[cells, side]`.
        turned: whether it is the other axis. Then, and where the line is reversed, cells must not look at most there is.
    """
    looks = [_look(most > faint * most.amax(1, keepdim=True), cells) for faint in FAINT]
    drawn = [found for found in (_draw(each, count, (0, most.shape[1] - 1)) for each in looks) if found]
    if not any(line.whole for line, _ in drawn):
        inside = [found for each in looks if each for found in _draw_inside(each, count)]
        drawn = [found for found in inside if found[0].whole] or drawn + inside
    line = min(drawn, key=lambda found: found[1], default=(None,))[0]
    wide = (turned or (line and line.step < 0)) and _find_share(looks[1], most.shape[1]) > WIDE
    return None if wide else line


class _Look(NamedTuple):
    """At which places along an axis a cell looks: the first, the last, and the largest gap between two, which dilation makes."""

    cell: int
    first: int
    last: int
    gap: int


def _look(looks: Tensor, cells: Sequence[int]) -> list[_Look]:
    """Find at which places each cell looks; `looks` says of each place whether it does, `[cells, side]`."""
    places = [[place for place, looked in enumerate(seen) if looked] for seen in looks.tolist()]
    gaps = [max((after - place for place, after in pairwise(each)), default=1) for each in places]
    return [_Look(cell, each[0], each[-1], gap) for cell, each, gap in zip(cells, places, gaps, strict=True) if each]


def _find_share(looks: Sequence[_Look], side: int) -> float:
    """Return the median share of `side` places from the first to the last at which a cell looks."""
    return statistics.median(each.last - each.first + 1 for each in looks) / side


def _draw_inside(looks: Sequence[_Look], count: int) -> Iterator[tuple[Line, float]]:
    """Draw lines where cells look at a part of what is before them, which has the borders: of a map that is cut, then padded.

    The line may go through most cells, from end to end of that part, where the others lie beyond: those of a map that is padded
    with its mirror image, or with what is at its other end, look elsewhere. Of one that is rolled none reaches from end to end.
    """
    bounds = min(each.first for each in looks), max(each.last for each in looks)
    order = sorted({look.cell for look in looks})
    least = max(INSIDE, -(-2 * len(order) // 3))
    for first, last in combinations(range(len(order) + 1), 2):
        beyond = order[:first] + order[last:]
        if beyond and last - first < least:
            continue
        found = _draw([look for look in looks if look.cell not in beyond], count, bounds)
        if found and (not beyond or (found[0].covers(count, bounds) and all(found[0].leaves(each, bounds) for each in beyond))):
            yield found


def _draw(looks: Sequence[_Look], count: int, bounds: Ends) -> tuple[Line, float] | None:
    """Draw the line in the middle between two of one slope, through the first and the last places of cells, where these count.

    At the borders of a map, a cell might look at more, if there were more.

    Args:
        bounds: the first and the last place of what is before.

    Returns:
        The line, and a number that is the larger the less it is to be trusted: of few ends nearly any line is straight. None: the
        ends lie on no line.
    """
    ends = [
        [(each.cell, each.first) for each in looks if each.first >= bounds[0] + each.gap],
        [(each.cell, each.last) for each in looks if each.last <= bounds[1] - each.gap],
    ]
    if not all(ends):
        return None
    found = _find_step(ends, count, bounds[1] - bounds[0] + 1)
    if found is None:
        return None
    step, exact = found
    rests = [[place - step * cell for cell, place in each] for each in ends]
    low, high = ((min(each) + max(each)) / 2 if exact else statistics.fmean(each) for each in rests)
    start = round(low + high) / 2 if step.is_integer() else (low + high) / 2  # the middle of a kernel is a cell, or between two
    off = sum(_miss(each, start + step * each.cell, (high - low) / 2, bounds) for each in looks)
    rest, total = _add_squares(rests), _add_squares([place for _, place in each] for each in ends)
    if not step or off > len(looks) * (STRAIGHT * max(1, abs(step))) ** 2 or rest > LEFT * total:
        return None
    middle = statistics.fmean(statistics.fmean(cell for cell, _ in each) for each in ends)
    spread = _add_squares([cell for cell, _ in each] for each in ends)
    far = max(middle, count - 1 - middle) ** 2 / spread if spread else math.inf
    lever, variance = sum(1 / len(each) for each in ends) / 4 + far, rest / max(1, sum(map(len, ends)) - 3)
    return Line(start, step, 0.0 if exact else math.sqrt(variance * lever)), (variance + ROUNDED) * lever


def _find_step(ends: Sequence[Sequence[tuple[int, int]]], count: int, side: int) -> tuple[float, bool] | None:
    """Find the step from the places of ends, `(cell, place)`; and whether these are those of that step, but for rounding.

    A step of whole cells is taken where it is near, and of a map that grows what its size says, or a whole share of a cell. Where
    a kernel is as wide as the map, only the cell at either end tells, and the step is taken from the sizes.
    """
    means = [[statistics.fmean(values) for values in zip(*each, strict=True)] for each in ends]
    pairs = [(cell - mean[0], place - mean[1]) for each, mean in zip(ends, means, strict=True) for cell, place in each]
    spread = sum(cell * cell for cell, _ in pairs)
    way = -1 if means[0][0] < means[1][0] else 1
    step = sum(cell * place for cell, place in pairs) / spread if spread else way * side / count
    whole = math.copysign(max(1, round(abs(step))), step)
    near = abs(step - whole) * (count - 1) < STRAIGHT
    if not near and not spread:
        return None
    shares = (side / count, 1 / round(1 / abs(step))) if 0 < abs(step) < 1 else ()
    for each in (whole,) if near else (math.copysign(share, step) for share in shares):
        rests = ([place - each * cell for cell, place in some] for some in ends)
        if all(max(some) - min(some) < 1 for some in rests):
            return each, True
    return (whole if near else step), False


def _add_squares(values: Iterable[Sequence[float]]) -> float:
    """Add up the squares of the distances from the mean of each."""
    means = ((each, sum(each) / len(each)) for each in values)  # `statistics` computes exactly, in fractions: ten times as long
    return sum((value - mean) ** 2 for each, mean in means for value in each)


def _miss(look: _Look, middle: float, reach: float, bounds: Ends) -> float:
    """Return the mean square of how far a cell's first and last places lie from where a kernel around `middle` would end."""
    ends = ((min(max(middle + sign * reach, bounds[0]), bounds[1]), place) for sign, place in ((-1, look.first), (1, look.last)))
    return sum(max(0.0, abs(end - place) - look.gap + 1) ** 2 for end, place in ends) / 2
