"""Steps: where a layer's cells lie in the picture, followed from map to map.

A cell of a deep network depends on most of the picture, and borders of zeros pull the middle of that inwards: it does not tell
where the cell lies. What the cell looks at in the map before does, as a convolution or a pooling reaches a few cells around its
place. So each map is replaced by a leaf of its own values, each step is read from the slopes of a map's cells with respect to the
leaves before it, and the steps are put together, as the arithmetic of receptive fields does from kernels, strides and borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, product

import torch
from torch import Tensor

from camserve.capture.alignment.lines import Step, find_line
from camserve.capture.alignment.sight import Sight
from camserve.capture.base import Classifier
from camserve.capture.models.passes import copy_saved_tensors, pad_batch, straighten_norms
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, LayerInfo, Survey
from camserve.capture.survey.layout import TOKENS, UPRIGHT, Layout, Turn

CELLS = 6
"""How many cells of a map are differentiated. Of an axis with fewer all are: small maps need those at both ends."""

MIXED = {4: (1, 3, 0, 2), 5: (1, 4, 2, 0, 3), 6: (2, 4, 1, 5, 0, 3)}
"""Orders of so many that do not go with their places, or hardly."""

DEAD = 0.01
"""A cell sees nothing whose slopes, or changes, are at most this share of the largest."""

NOISE = 0.1
"""Standard deviation of a little difference, as a share of a map's own."""

MOST = 2**24
"""Number of values of a picture's maps that get a leaf. They are held about five times, so that this is 320 MB. The largest maps,
which are the first, go without where there are more: a step through several layers reaches a small part of such."""

SAME = 0.25
"""How far, in cells, a map's edges may lie apart in two pictures: where a step goes through many layers at once, these differ."""

OUT_OF_PLACE = 0.6
"""How far, in cells, a layer's cells may lie from where a map over all of the picture would show them."""


@dataclass(frozen=True)
class Traced:
    """Where a layer's cells lie.

    Attributes:
        sight: over what part of the picture, and how they are turned.
        off: how far, in cells, from where they would, so turned, over all of it.
        grid: rows and columns, as in the picture.
    """

    sight: Sight
    off: float
    grid: tuple[int, int]

    @classmethod
    def of(cls, step: Step, cells: tuple[int, int], size: tuple[int, int]) -> Traced:
        """Take the step to a picture of `size` from a map of `cells` as it lies in memory; both are (height, width)."""
        (rows, columns), (high, wide) = ((step[1], step[0]), cells[::-1]) if step.transposed else (step[:2], cells)
        turn = Turn(step.transposed, rows.step < 0, columns.step < 0)
        down, across = rows.ordered(high), columns.ordered(wide)
        off = max(down.off(high, size[0]), across.off(wide, size[1]))
        return cls(Sight(down.span(high, size[0]), across.span(wide, size[1]), turn), off, (high, wide))

    @property
    def part(self) -> Sight | None:
        """The part of the picture; None: a map over all of it is about right."""
        return self.sight if self.off > OUT_OF_PLACE else None

    def agrees(self, other: Traced) -> bool:
        """Return whether both lie at one place."""
        spans = zip((self.sight.rows, self.sight.columns), (other.sight.rows, other.sight.columns), self.grid, strict=True)
        apart = (abs(one - another) * count for span, its, count in spans for one, another in zip(span, its, strict=True))
        return self.sight.turn == other.sight.turn and max(apart) < SAME


class Trace:
    """Where the steps from a call of a layer lead, in one picture and in others: what a model reads from them may move its cells.

    Args:
        info: the layer. Tokens lie as the last map before them that has as many cells and calls, if there is one.
        call: its number, from 1.
        pictures: `[N, C, H, W]`; each is used upside down too.

    Attributes:
        at: where they lead in the first picture; None: nowhere.
    """

    def __init__(self, model: Classifier, survey: Survey, info: LayerInfo, call: int, pictures: Tensor) -> None:
        traced = _find_map(survey, info)
        self._find = partial(_trace_call, model, survey, traced, call - 1) if traced else None
        self._pictures, self._agree = pictures, None if traced else False
        self.at = self._find(pictures[:1]) if self._find else None

    def transpose(self) -> None:
        """Look for steps in which rows become columns, where no others lead anywhere; few models have them."""
        if self._find and not self.at and "transposed" not in self._find.keywords:
            self._find = partial(self._find, transposed=True)
            self.at = self._find(self._pictures[:1])

    @property
    def steady(self) -> bool:
        """Whether they lead to the same place in all pictures."""
        if self.at and self._find and self._agree is None:
            others = torch.split(torch.cat([self._pictures[1:], self._pictures.flip(2, 3)]), 1)
            self._agree = all(each is not None and self.at.agrees(each) for each in map(self._find, others))
        return bool(self._agree)

    @property
    def plain(self) -> bool:
        """Whether they lead to all of the picture, upright."""
        return self.at is not None and self.at.sight.turn == UPRIGHT and not self.at.part

    @property
    def leads(self) -> bool:
        """Whether they lead elsewhere, to one place in all pictures."""
        return not self.plain and self.steady


def _find_map(survey: Survey, info: LayerInfo) -> LayerInfo | None:
    """Return the map whose steps tell where a layer lies; None: there is none."""
    layout, names = info.site.layout, [each.name for each in survey.maps]
    if layout.order not in TOKENS:
        return info
    before = [each for each in survey.maps[: names.index(info.name)] if each.calls == info.calls]
    maps = (each for each in reversed(before) if each.site.layout.order not in TOKENS)
    return next((each for each in maps if each.site.layout.grid == layout.grid), None)


def _trace_call(
    model: Classifier, survey: Survey, info: LayerInfo, call: int, picture: Tensor, *, transposed: bool = False
) -> Traced | None:
    """Find where a map's cells lie; None: no steps lead from it to the picture, or one of them looks at all of a map.

    Args:
        call: its number, from 0.
        picture: `[1, C, H, W]`.
        transposed: whether steps in which rows become columns are looked for too.
    """
    for again in (False, True):  # copies only where the model overwrites what is needed
        try:
            graph = _Graph(model, survey, info, picture, again)
            step = _walk(graph, (info.name, call), transposed)
        except MODEL_ERRORS:
            continue
        layout = graph.layouts[info.name, call][0]
        return step and Traced.of(step, (layout.height, layout.width), (picture.shape[2], picture.shape[3]))
    return None


def _walk(graph: _Graph, last: Key, transposed: bool) -> Step | None:
    """Go back from a map to the picture, by other ways where one ends; return the steps put together."""
    start = last, graph.layouts[last][0]
    seen, path = {start}, [(Step(), graph.steps(*start, transposed))]
    while path:
        so_far, steps = path[-1]
        found = next(steps, None)
        if found is None:
            path.pop()
            continue
        before, step = found
        whole = so_far.after(step)
        if before[0] == PICTURE:
            return whole
        if before not in seen:
            seen.add(before)
            path.append((whole, graph.steps(*before, transposed)))
    return None


Key = tuple[str, int]
"""The name of a layer, and the number of a call, from 0."""

PICTURE: Key = "", 0
"""The picture, where no layer is before."""


class _Graph:
    """One pass of a model, with a leaf in place of each map.

    Raises:
        MODEL_ERRORS: the model does not run so.
    """

    def __init__(self, model: Classifier, survey: Survey, last: LayerInfo, picture: Tensor, copies: bool) -> None:
        self._model, layers = model, _pick_layers(survey, last)
        names, given = [info.name for info in layers], pad_batch(picture, model.batch[0]).detach().clone()
        with torch.inference_mode(mode=False), disable_tf32():
            _, values = model.run_calls(names, given)
            calls = [(info, call, values[info.name][call]) for info in layers for call in range(info.calls)]
            self.layouts = {(info.name, call): _read(info, call, kept.shape) for info, call, kept in calls}
            self.layouts[PICTURE] = (Layout("nchw", given.shape[2], given.shape[3], given.shape[1]),)
            with torch.enable_grad(), copy_saved_tensors() if copies else nullcontext():
                zero = torch.zeros((), requires_grad=True)  # a sum is no leaf by itself, so that the model may write into it
                leaves = {(info.name, call): kept + zero.to(kept) for info, call, kept in calls}
                del values, calls
                self._leaves = {PICTURE: given + zero.to(given), **leaves}
                _, outputs = model.run_calls(names, self._leaves[PICTURE], leaves)
        self._outputs = {key: outputs[key[0]][key[1]] for key in leaves}

    def steps(self, name: Key, layout: Layout, turned: bool) -> Iterator[tuple[tuple[Key, Layout], Step]]:
        """Yield the maps, or the picture, of which a map's cells see a few, as they lie, and the steps.

        The first one comes first; those on which the map lies transposed, if `turned`, come last.
        """
        output = self._outputs[name]
        if not output.requires_grad:
            return
        straighten_norms(output)
        cells, slopes = self._find_slopes(output, name, layout)
        for transposed, (place, before) in product((False, True) if turned else (False,), enumerate(self._leaves)):
            if before == name or any(each[place] is None for each in slopes):
                continue
            for lying in self.layouts[before]:
                grids = (lying.to_grid(each[place])[0].float() for each in slopes)
                energies = torch.stack([grid.square().sum(0).nan_to_num(0, 0, 0) for grid in grids])
                sides = (energies.amax(1), energies.amax(2)) if transposed else (energies.amax(2), energies.amax(1))
                axes = zip(sides, zip(*cells, strict=True), layout.grid, strict=True)
                down, across = (find_line(*axis, turned=transposed) for axis in axes)
                if down and across:
                    yield (before, lying), Step(down, across, transposed)

    def _find_slopes(self, output: Tensor, name: Key, layout: Layout) -> tuple[list[tuple[int, int]], list[Sequence[Tensor]]]:
        """Return cells of a map, and their slopes; others than usual where some of those see nothing, as in a padded border."""
        cells = _pick_cells(range(layout.height), range(layout.width))
        slopes = [self._differentiate(output[layout.index(cell)]) for cell in cells]
        seen = [max((float(slope.abs().max()) for slope in each if slope is not None), default=0.0) for each in slopes]
        if min(seen) > DEAD * max(seen):
            return cells, slopes
        changes = layout.to_grid((self._changed[name] - output.detach())[:1])[0].abs().amax(0)
        alive = changes > DEAD * changes.max()
        rows, columns = (alive.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        cells = _pick_cells(rows, columns) if rows else cells
        return cells, [self._differentiate(output[layout.index(cell)]) for cell in cells]

    @cached_property
    def _changed(self) -> dict[Key, Tensor]:
        """What each map is where all of those before it, and the picture, are a little different."""
        chance = torch.Generator().manual_seed(6)
        given = {key: leaf.detach() for key, leaf in self._leaves.items()}
        for key, leaf in given.items():
            given[key] = leaf + NOISE * leaf.std(correction=0) * torch.randn(leaf.shape, generator=chance).to(leaf)
        with torch.inference_mode(mode=False), disable_tf32():
            picture = given.pop(PICTURE)
            _, outputs = self._model.run_calls({name for name, _ in given}, picture, given)
        return {key: outputs[key[0]][key[1]] for key in given}

    def _differentiate(self, cell: Tensor) -> Sequence[Tensor]:
        """Return the slopes of a mixture of a cell's channels, always the same one, with respect to each leaf that counts."""
        mixture = torch.randn(len(cell), generator=torch.Generator().manual_seed(6)).to(cell)
        return torch.autograd.grad((cell * mixture).sum(), list(self._leaves.values()), retain_graph=True, allow_unused=True)


def _pick_layers(survey: Survey, last: LayerInfo) -> list[LayerInfo]:
    """Pick, of the layers up to the last one that run once or as often, those of the fewest values that are `MOST` together."""
    layers = [info for info in survey.layers if info.calls in (1, last.calls) and _read(info, info.calls - 1, info.shape)]
    layers = layers[: next(place for place, info in enumerate(layers) if info.name == last.name) + 1]
    sizes = sorted((info.calls * math.prod(info.shape[1:]), -place) for place, info in enumerate(layers))
    kept = {-place for (_, place), total in zip(sizes, accumulate(size for size, _ in sizes), strict=True) if total <= MOST}
    return [info for place, info in enumerate(layers) if place in kept or info.name == last.name]


def _read(info: LayerInfo, call: int, shape: Sequence[int]) -> tuple[Layout, ...]:
    """Return how the output of a call may lie: as it was read, or as a map of other proportions than the picture's would."""
    layout = info.layouts[call] if info.layouts else info.layout
    known = (layout,) if layout else ()
    if len(shape) != 4:
        return known
    _, first, second, third = shape
    return tuple(dict.fromkeys((*known, Layout("nchw", second, third, first), Layout("nhwc", first, second, third))))


def _pick_cells(rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
    """Pick cells of each of these rows and columns, or of `CELLS` of them; of few all.

    Those of later rows lie neither more to the right nor more to the left: else a grid would look as one that is turned.
    """
    rows, columns = (
        each if len(each) <= CELLS else [each[round(place * (len(each) - 1) / (CELLS - 1))] for place in range(CELLS)]
        for each in (rows, columns)
    )
    order = MIXED.get(max(len(rows), len(columns)))
    if order is None:
        return list(product(rows, columns))
    return [(rows[each % len(rows)], columns[mixed % len(columns)]) for each, mixed in enumerate(order)]
