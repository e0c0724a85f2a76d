"""Slopes: on what part of the picture each cell of a layer depends, while all that the model chooses stays as it is.

Where every change of a picture changes all cells, no probe tells where they lie. A gradient does: what the model reads from the
picture and chooses by it (how far it rolls its rows, in which order it sorts its tokens) has none, and is held.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from camserve.capture.alignment.places import CHANCE, chance_to_reach, find_chance, find_reach
from camserve.capture.alignment.probes import spread_cells
from camserve.capture.base import Classifier
from camserve.capture.models.passes import copy_saved_tensors, pad_batch, straighten_norms
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, View

Verdict = Literal["there", "elsewhere", "unknown"]
"""The cells lie where they are taken to lie; or elsewhere; or no slope tells."""

CELLS = 6
"""How many cells are differentiated of each picture."""

FINE = (2, 64)
"""A picture's slopes are added up in so many parts of a cell along each axis, and in so many parts in all, at least."""

AWAY = 1.4
"""A place that is so many times as far away as what is about there is elsewhere."""

THERE = 0.7
"""Share of the cells that must depend most on what is about where they are."""

ELSEWHERE = 0.3
"""Where this share of the cells evidently depends most on places elsewhere, the cells do not lie where they are taken to."""

EVIDENT = (3.0, 0.8, 0.05)
"""A place is evident where it has so many times the share of what a cell depends on more than others do that it would have by
chance, or this share; and where that is this share of all that the cell depends on."""

FEWEST = 4
"""Least number of cells with a slope that tell anything."""

ROWS = 5
"""Least number of rows, and of columns: on fewer a cell of a deep network depends on all of the picture, and no place tells."""


@dataclass(frozen=True)
class Slope:
    """On what place of the picture a cell depends more than other cells do.

    Attributes:
        distance: how far that place is from the cell, in cells, along the axis where it is farthest.
        far: the same, in what is still about there (`find_reach`).
        evident: whether it depends on this place rather than on many.
    """

    distance: float
    far: float
    evident: bool


@dataclass(frozen=True)
class Slopes:
    """What the slopes of some cells show; `chance`: how probable it is that a place is near its cell by chance."""

    cells: tuple[Slope, ...]
    chance: float

    @property
    def verdict(self) -> Verdict:
        """Whether the cells lie where they are taken to lie."""
        count = len(self.cells)
        near = sum(each.far <= 1 for each in self.cells)
        if count < FEWEST:
            return "unknown"
        if near >= THERE * count and find_chance(near, count, self.chance) <= CHANCE:
            return "there"
        away = sum(each.far > AWAY and each.evident for each in self.cells)
        return "elsewhere" if away >= ELSEWHERE * count else "unknown"

    @property
    def distance(self) -> float:
        """The median distance, in cells."""
        return statistics.median(each.distance for each in self.cells)


def find_slopes(model: Classifier, layer: str, view: View, pictures: Tensor) -> Slopes | None:
    """Differentiate some cells of a call of a layer with respect to the picture; None: it has no gradient, or too few cells.

    Args:
        view: the call, and where its cells are taken to lie.
        pictures: `[N, C, H, W]`; each is used upside down too.
    """
    layout = view.layout
    spread = dict.fromkeys(spread_cells((layout.height, layout.width), 64 * CELLS))
    order = [cell for cell in spread if all(0 <= share <= 1 for share in _place(view, cell))]
    if min(layout.grid) < ROWS or len(order) < 2:
        return None
    found: list[Slope] = []
    for turn, picture in enumerate(torch.split(torch.cat([pictures, pictures.flip(2, 3)]), 1)):
        cells = [order[(turn * CELLS + each) % len(order)] for each in range(min(CELLS, len(order)))]
        energies = _differentiate(model, layer, view, picture, cells)
        if energies is None:
            return None
        found += _compare(view, cells, energies)
    return Slopes(tuple(found), chance_to_reach(layout.grid))


def _place(view: View, cell: tuple[int, int]) -> tuple[float, float]:
    """Return where the middle of a cell, as it lies in memory, is in the picture, in shares."""
    layout = view.layout
    row, column = layout.turn.place((cell[0] + 0.5) / layout.height, (cell[1] + 0.5) / layout.width)
    (top, bottom), (left, right) = view.rows, view.columns
    return top + row * (bottom - top), left + column * (right - left)


def _differentiate(model: Classifier, layer: str, view: View, picture: Tensor, cells: Sequence[tuple[int, int]]) -> Tensor | None:
    """Return the squared slopes `[cells, H, W]` of each cell, of a mixture of its channels; None: they cannot be had."""
    for saving in (nullcontext, copy_saved_tensors):  # copies, of weights too, only where the model overwrites what is needed
        given = pad_batch(picture, model.batch[0]).detach().clone().requires_grad_()
        try:
            with torch.inference_mode(mode=False), torch.enable_grad(), saving(), disable_tf32():
                _, outputs = model.run_calls((layer,), given * 1)  # which the model may overwrite too
                output = outputs[layer][view.call - 1]
                if not output.requires_grad:
                    return None
                straighten_norms(output)
                return torch.stack([_square_slope(output, given, seed) for seed in _mix(view, output, cells)]).cpu()
        except MODEL_ERRORS:
            continue
    return None


def _square_slope(output: Tensor, given: Tensor, seed: Tensor) -> Tensor:
    """Return, of the first picture, the squared gradient of `sum(output * seed)`, summed over its channels, `[H, W]`."""
    (slope,) = torch.autograd.grad((output * seed).sum(), given, retain_graph=True)  # SymPy is imported for `grad_outputs`
    return slope[0].double().nan_to_num(0, 0, 0).square().sum(0)


def _mix(view: View, output: Tensor, cells: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield, for each cell, what mixes its channels by chance: one that is zero would hide it."""
    generator, layout = torch.Generator().manual_seed(6), view.layout
    for cell in cells:
        seed = torch.zeros_like(output)
        seed[layout.index(cell)] = torch.randn(layout.channels, generator=generator).to(seed)
        yield seed


def _compare(view: View, cells: Sequence[tuple[int, int]], energies: Tensor) -> Iterator[Slope]:
    """Find where each cell depends on the picture more than other cells of it do."""
    spans = [high - low for low, high in (view.rows, view.columns)]
    wanted = [count / span for count, span in zip(view.layout.grid, spans, strict=True)]
    fine, least = FINE
    while fine**2 * math.prod(wanted) < least:
        fine *= 2
    high, wide = (max(1, min(side, round(fine * count))) for side, count in zip(energies.shape[1:], wanted, strict=True))
    slopes = functional.adaptive_avg_pool2d(energies[:, None], (high, wide))[:, 0].sqrt()
    shares = slopes / slopes.sum((1, 2), keepdim=True).clamp_min(torch.finfo(slopes.dtype).tiny)
    excess = (shares - (shares.sum(0, keepdim=True) - shares) / (len(shares) - 1)).clamp_min(0)
    for cell, more in zip(cells, excess, strict=True):
        if more.any():
            place, evident = _locate(more, fine)
            away = [abs(found - share) * count for found, share, count in zip(place, _place(view, cell), wanted, strict=True)]
            far = [each / find_reach(count) for each, count in zip(away, view.layout.grid, strict=True)]
            yield Slope(max(away), max(far), evident)


def _locate(excess: Tensor, fine: int) -> tuple[tuple[float, float], bool]:
    """Return the place, in shares, around which most of an excess `[h, w]` lies, and whether it is evident.

    Args:
        fine: how many of its parts a cell has along each axis.
    """
    height, width = excess.shape
    radius = fine // 2
    smooth = functional.avg_pool2d(excess[None], 2 * radius + 1, 1, radius)[0]
    row, column = divmod(int(smooth.argmax()), width)
    around = excess[max(0, row - fine) : row + fine + 1, max(0, column - fine) : column + fine + 1]
    times, most, least = EVIDENT
    share, total = float(around.sum() / excess.sum()), float(excess.sum())
    evident = total >= least and share >= min(times * around.numel() / excess.numel(), most)
    return ((row + 0.5) / height, (column + 0.5) / width), evident
