"""Steps: where a layer's cells lie in the picture, followed from map to map.

A cell of a deep network depends on most of the picture, and borders of zeros pull the middle of that inwards: it does not tell
where the cell lies. What the cell looks at in the map before does, as a convolution or a pooling reaches a few cells around its
place. So each map is replaced by a leaf of its own values, each step is read from the slopes of a map's cells with respect to the
leaves before it, and the steps are put together, as the arithmetic of receptive fields does from kernels, strides and borders.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import copy_saved_tensors, pad_batch, straighten_norms
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, LayerInfo, Survey
from camserve.capture.survey.layout import Layout

Span = tuple[float, float]
"""From where to where, in shares of an axis of the picture."""

CELLS = 6
"""How many cells of a map are differentiated. Of an axis with fewer all are: small maps need those at both ends."""

FAINT = (1e-5, 1e-3, 1e-2, 1e-1)
"""A cell looks at what has this share of its largest squared slope. Means over all of a map, in norms and gates, reach everywhere
by little: of these shares the one counts with which the line is straightest."""

MOST = 2**24
"""Number of values of a picture's maps that get a leaf. They are held about five times, so that this is 320 MB. The largest maps,
which are the first, go without where there are more: a step through several layers reaches a small part of such."""

STRAIGHT = 0.5
"""How far from where their line says what cells look at may end, the root of the mean square: in cells, or in steps if those are
longer."""

ROUNDED = 1 / 12
"""The variance of ends, which are whole numbers, around where what a cell looks at ends."""

SAME = 0.25
"""How far, in cells, a map's edges may lie apart in two pictures: where a step goes through many layers at once, these differ."""

LEFT = 0.1
"""Largest share of the variance of these ends that the line may leave."""

SURE = 2
"""How many standard errors a place may be nearer than it seems."""


@dataclass(frozen=True)
class Line:
    """Where cells lie along an axis of what is before them: cell `i` lies at `start + step * i`, from the middle of the first.

    Attributes:
        start, step: in cells of the map before, or in pixels.
        error: the standard error of the first and the last cell's place, the larger one.
    """

    start: float = 0.0
    step: float = 1.0
    error: float = 0.0

    def after(self, other: Line) -> Line:
        """Return where the cells lie, in what is before `other`, that lie on this line in cells that lie on `other`."""
        error = math.hypot(other.step * self.error, other.error)
        return Line(other.start + other.step * self.start, other.step * self.step, error)

    def span(self, count: int, side: int) -> Span:
        """Return over what part of an axis of `side` pixels so many cells lie."""
        return tuple((self.start + self.step * edge + 0.5) / side for edge in (-0.5, count - 0.5))  # type: ignore[return-value]

    def off(self, count: int, side: int) -> float:
        """Return how far, in cells, one of `count` lies from where it would if they lay over all of the axis; at the least."""
        ends = ((self.start + self.step * cell + 0.5) / side * count - cell - 0.5 for cell in (0, count - 1))
        return max(map(abs, ends)) - SURE * self.error / side * count


@dataclass(frozen=True)
class Traced:
    """Where a layer's cells lie: over what part of the picture, and how far, in cells, from where they would over all of it."""

    rows: Span
    columns: Span
    off: float

    def agrees(self, other: Traced, grid: tuple[int, int]) -> bool:
        """Return whether both lie at one place."""
        pairs = zip((*self.rows, *self.columns), (*other.rows, *other.columns), (grid[0], grid[0], grid[1], grid[1]), strict=True)
        return all(abs(one - another) * count < SAME for one, another, count in pairs)


def trace_layer(model: Classifier, survey: Survey, layer: str, picture: Tensor) -> Traced | None:
    """Find where a layer's cells lie; None: no steps lead from it to the picture, or one of them looks at all of a map.

    Args:
        layer: the name of one that runs once.
        picture: `[1, C, H, W]`.
    """
    for again in (False, True):  # copies only where the model overwrites what is needed
        try:
            graph = _Graph(model, survey, layer, picture, again)
            lines = _walk(graph, layer)
        except MODEL_ERRORS:
            continue
        if lines is None:
            return None
        sides = list(zip(lines, survey.info(layer).site.layout.grid, picture.shape[2:], strict=True))
        spans = [line.span(count, side) for line, count, side in sides]
        return Traced(spans[0], spans[1], max(line.off(count, side) for line, count, side in sides))
    return None


def _walk(graph: _Graph, layer: str) -> tuple[Line, Line] | None:
    """Go back from a layer to the picture, by other ways where one ends; return the steps put together."""
    start = layer, graph.layouts[layer][0]
    seen, path = {start}, [((Line(), Line()), graph.steps(*start))]
    while path:
        (rows, columns), steps = path[-1]
        found = next(steps, None)
        if found is None:
            path.pop()
            continue
        before, (down, across) = found
        lines = rows.after(down), columns.after(across)
        if before[0] == PICTURE:
            return lines
        if before not in seen:
            seen.add(before)
            path.append((lines, graph.steps(*before)))
    return None


PICTURE = ""
"""The name of the picture, where no layer is before."""


class _Graph:
    """One pass of a model, with a leaf in place of each map.

    Raises:
        MODEL_ERRORS: the model does not run so.
    """

    def __init__(self, model: Classifier, survey: Survey, layer: str, picture: Tensor, copies: bool) -> None:
        self.layouts = {info.name: _read(info) for info in _pick_layers(survey, layer)}
        names, given = list(self.layouts), pad_batch(picture, model.batch[0]).detach().clone()
        with torch.inference_mode(mode=False), disable_tf32():
            _, values = model.run_calls(names, given)
            self.layouts[PICTURE] = (Layout("nchw", given.shape[2], given.shape[3], given.shape[1]),)
            with torch.enable_grad(), copy_saved_tensors() if copies else nullcontext():
                zero = torch.zeros((), requires_grad=True)  # a sum is no leaf by itself, so that the model may write into it
                leaves = {name: (kept := values.pop(name)[0]) + zero.to(kept) for name in names}
                self._leaves = {PICTURE: given + zero.to(given), **leaves}
                _, outputs = model.run_calls(names, self._leaves[PICTURE], {(name, 0): leaf for name, leaf in leaves.items()})
        self._outputs = {name: calls[0] for name, calls in outputs.items()}

    def steps(self, name: str, layout: Layout) -> Iterator[tuple[tuple[str, Layout], tuple[Line, Line]]]:
        """Yield the maps, or the picture, of which a map's cells see a few, as they lie, and the steps; the first one first."""
        output = self._outputs[name]
        if not output.requires_grad:
            return
        straighten_norms(output)
        cells = _pick_cells(layout)
        slopes = [self._differentiate(output[layout.index(cell)]) for cell in cells]
        for place, before in enumerate(self._leaves):
            if before == name or any(each[place] is None for each in slopes):
                continue
            for lying in self.layouts[before]:
                grids = (lying.to_grid(each[place])[0].float() for each in slopes)
                energies = torch.stack([grid.square().sum(0).nan_to_num(0, 0, 0) for grid in grids])
                down, across = (
                    _fit(energies.amax(2 - axis), [cell[axis] for cell in cells], layout.grid[axis]) for axis in (0, 1)
                )
                if down and across:
                    yield (before, lying), (down, across)

    def _differentiate(self, cell: Tensor) -> Sequence[Tensor]:
        """Return the slopes of a mixture of a cell's channels, always the same one, with respect to each leaf that counts."""
        mixture = torch.randn(len(cell), generator=torch.Generator().manual_seed(6)).to(cell)
        return torch.autograd.grad((cell * mixture).sum(), list(self._leaves.values()), retain_graph=True, allow_unused=True)


def _pick_layers(survey: Survey, last: str) -> list[LayerInfo]:
    """Pick, of the layers up to the last one that run once, those of the fewest values that are `MOST` together."""
    layers = [info for info in survey.layers if info.calls == 1 and _read(info)]
    layers = layers[: next(place for place, info in enumerate(layers) if info.name == last) + 1]
    sizes = sorted((math.prod(info.shape[1:]), -place) for place, info in enumerate(layers))
    kept = {-place for (_, place), total in zip(sizes, accumulate(size for size, _ in sizes), strict=True) if total <= MOST}
    return [info for place, info in enumerate(layers) if place in kept or info.name == last]


def _read(info: LayerInfo) -> tuple[Layout, ...]:
    """Return how a layer's output may lie: as it was read, or as a map of other proportions than the picture's would."""
    known = (info.layout,) if info.layout else ()
    if len(info.shape) != 4:
        return known
    _, first, second, third = info.shape
    return tuple(dict.fromkeys((*known, Layout("nchw", second, third, first), Layout("nhwc", first, second, third))))


def _pick_cells(layout: Layout) -> list[tuple[int, int]]:
    """Pick cells of every row and column, or of `CELLS` of them; off every diagonal, as a grid that is turned is not upright."""
    rows, columns = (
        list(range(side)) if side <= CELLS else [round(each * (side - 1) / (CELLS - 1)) for each in range(CELLS)]
        for side in (layout.height, layout.width)
    )
    middle = len(columns) // 2
    return [(rows[each % len(rows)], columns[(middle - each) % len(columns)]) for each in range(max(len(rows), len(columns)))]


def _fit(most: Tensor, cells: Sequence[int], count: int) -> Line | None:
    """Find along an axis of `count` cells where these lie; None: what they look at is on no line, or all there is.

    Args:
        most: the largest squared slope of each cell, along the axis of what it looks at, `[cells, side]`.
    """
    lines = (_draw(_look(most > faint * most.amax(1, keepdim=True), cells), count, most.shape[1]) for faint in FAINT)
    return min(filter(None, lines), key=lambda found: found[1], default=(None,))[0]


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


def _draw(looks: Sequence[_Look], count: int, side: int) -> tuple[Line, float] | None:
    """Draw the line in the middle between two of one slope, through the first and the last places of cells, where these count.

    At the borders of a map, a cell might look at more, if there were more. Where a kernel is as wide as the map, only the cell at
    either end tells, and the step is taken from the sizes.

    Returns:
        The line, and a number that is the larger the less it is to be trusted: of few ends nearly any line is straight. None: the
        ends lie on no line.
    """
    ends = [
        [(each.cell, each.first) for each in looks if each.first >= each.gap],
        [(each.cell, each.last) for each in looks if each.last < side - each.gap],
    ]
    if not all(ends):
        return None
    means = [[statistics.fmean(values) for values in zip(*each, strict=True)] for each in ends]
    pairs = [(cell - mean[0], place - mean[1]) for each, mean in zip(ends, means, strict=True) for cell, place in each]
    spread = sum(cell * cell for cell, _ in pairs)
    step = sum(cell * place for cell, place in pairs) / spread if spread else side / count
    whole = max(1, round(step))
    near = abs(step - whole) * (count - 1) < STRAIGHT
    if not near and (not spread or step <= 0):
        return None
    step = whole if near else step
    low, high = (place - step * cell for cell, place in means)
    start = round(low + high) / 2 if near else (low + high) / 2  # the middle of a kernel is a cell, or lies between two
    rest = sum((place - step * cell) ** 2 for cell, place in pairs)
    off = sum(_miss(each, start + step * each.cell, (high - low) / 2, side) for each in looks)
    if off > len(looks) * (STRAIGHT * max(1, step)) ** 2 or rest > LEFT * sum(place * place for _, place in pairs):
        return None
    middle = statistics.fmean(cell for cell, _ in means)
    far = max(middle, count - 1 - middle) ** 2 / spread if spread else math.inf
    lever = sum(1 / len(each) for each in ends) / 4 + far
    variance = rest / max(1, len(pairs) - 3)
    return Line(start, step, math.sqrt(variance * lever) if variance else 0.0), (variance + ROUNDED) * lever


def _miss(look: _Look, middle: float, reach: float, side: int) -> float:
    """Return the mean square of how far a cell's first and last places lie from where a kernel around `middle` would end."""
    ends = ((min(max(middle + sign * reach, 0), side - 1), place) for sign, place in ((-1, look.first), (1, look.last)))
    return sum(max(0.0, abs(end - place) - look.gap + 1) ** 2 for end, place in ends) / 2
