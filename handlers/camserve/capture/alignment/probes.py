"""Probes: pictures that differ from plain ones in one patch, and how much each cell of a layer changes with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import pad_batch
from camserve.capture.survey.layout import Layout

STRENGTH = 2.0
"""Standard deviation of the noise in the patch, as a share of the picture's."""

SMALLEST = 4
"""Least side of a patch, in pixels."""

FLOOR = 0.3
"""What is added to a cell's mean change by other probes, as a share of the largest: cells that hardly change are no peaks."""

QUIET = 0.02
"""A probe that changes no cell by more than this share of the median probe's largest change is not seen by the layer."""


@dataclass(frozen=True)
class Probes:
    """Plain pictures, and the same with one patch of noise: several, as a model may look elsewhere in each.

    Attributes:
        pictures: `[P + K, C, H, W]`, the P plain ones first; the others differ from each of these in turn.
        plain: P.
        places: the middles of the K patches, as shares of the height and the width.
    """

    pictures: Tensor
    plain: int
    places: tuple[tuple[float, float], ...]


def make_probes(plain: Tensor, grid: tuple[int, int], count: int) -> Probes:
    """Make up to `count` probes for a grid of (rows, columns) of cells, each inside one cell, no cell twice.

    Args:
        plain: pictures as the model takes them, `[P, C, H, W]`.
    """
    cells = list(dict.fromkeys(spread_cells(grid, 8 * count)))[:count]
    generator, size = torch.Generator().manual_seed(3), (plain.shape[2], plain.shape[3])
    strength = STRENGTH * float(plain.std())
    pictures, places = [plain], []
    for turn, cell in enumerate(cells):
        (top, bottom), (left, right) = (_span(*each) for each in zip(cell, grid, size, strict=True))
        changed = plain[turn % len(plain)][None].clone()
        noise = torch.randn(plain.shape[1], bottom - top, right - left, generator=generator)
        changed[:, :, top:bottom, left:right] += strength * noise.to(plain)
        pictures.append(changed)
        places.append(((top + bottom) / 2 / size[0], (left + right) / 2 / size[1]))
    return Probes(torch.cat(pictures), len(plain), tuple(places))


def spread_cells(grid: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Return `count` cells of a grid of (rows, columns), drawn by chance, always the same ones.

    No row, and no column, comes again before all have come. Even steps would miss every second row of some grids, and with them
    what a model turns in these only.
    """
    generator = torch.Generator().manual_seed(4)

    def orders(length: int) -> Iterator[int]:
        while True:
            yield from torch.randperm(length, generator=generator).tolist()

    rows, columns = (list(islice(orders(length), count)) for length in grid)
    return list(zip(rows, columns, strict=True))


def _span(cell: int, cells: int, side: int) -> tuple[int, int]:
    """Return the pixels of a cell, without those that it shares with its neighbours; at least `SMALLEST`, around its middle."""
    first, last = math.ceil(cell * side / cells), (cell + 1) * side // cells
    if last - first < SMALLEST:
        first = min(max(0, round((cell + 0.5) * side / cells) - SMALLEST // 2), max(0, side - SMALLEST))
        last = min(side, first + SMALLEST)
    return first, last


class Found(NamedTuple):
    """What probes show of some layers, by name, for each call in order.

    Attributes:
        changes: the norms over channels of what each probe changes, `[K, h, w]` of a map and `[K, T]` of tokens, as these lie in
            memory; None where the call's output is of another kind than the layout.
        silent: which share of the cells, on the plain pictures, has all its channels at the layer's least value or its largest,
            as a ReLU and a gate have them: a probe may change nothing of these, and be seen all the same.
    """

    changes: dict[str, list[Tensor | None]]
    silent: dict[str, list[float]]


def find_changes(model: Classifier, layouts: Mapping[str, Layout], probes: Probes) -> Found:
    """Measure how much each probe changes each cell of these layers."""
    low, high = model.batch
    parts = torch.split(probes.pictures, high or len(probes.pictures))
    plain: dict[tuple[str, int], list[Tensor]] = {}
    changes: dict[tuple[str, int], list[Tensor]] = {}
    start = 0
    for part in parts:
        _, outputs = model.run_calls(tuple(layouts), pad_batch(part, low))
        for layer, calls in outputs.items():
            for call, output in enumerate(calls):
                values = _channels_last(output, layouts[layer], max(low, len(part)))
                if values is None:
                    changes[layer, call] = []
                    continue
                first, changed = plain.setdefault((layer, call), []), changes.setdefault((layer, call), [])
                first += values[: max(0, probes.plain - start)]
                for place in range(max(0, probes.plain - start), len(part)):
                    base = first[(start + place - probes.plain) % probes.plain]
                    changed.append((values[place] - base).norm(dim=-1).nan_to_num(0, 0, 0).cpu())
        start += len(part)
    found = Found({layer: [] for layer in layouts}, {layer: [] for layer in layouts})
    for (layer, call), norms in changes.items():
        found.changes[layer].append(torch.stack(norms) if norms else None)
        found.silent[layer].append(_share_silent(torch.stack(plain[layer, call])) if norms else 0.0)
    return found


def _share_silent(values: Tensor) -> float:
    """Return the share of the cells of `[P, ..., C]` of which every channel is at the least value of all, or at the largest."""
    return float(((values == values.amin()) | (values == values.amax())).all(-1).float().mean())


def _channels_last(output: Tensor, layout: Layout, count: int) -> Tensor | None:
    """Return an output as `[N, ..., C]`, float32; None where it is of another kind than the layout."""
    expected = layout.shape(count)
    batch, channel = {"nchw": (0, 1), "nhwc": (0, 3), "tokens": (0, 2), "sequence": (1, 2)}[layout.order]
    if output.ndim != len(expected) or output.shape[batch] != count or output.shape[channel] != layout.channels:
        return None
    return output.movedim((batch, channel), (0, -1)).float()


def find_peaks(changes: Tensor) -> list[int | None]:
    """Return the cell that each probe changes most, beyond what the other probes change of it.

    A class token changes with every probe, a cell with those in its patch; and some cells change more with anything.

    Args:
        changes: `[K, cells]`.

    Returns:
        A cell's index for each probe; None where it changes hardly any.
    """
    others = (changes.sum(0, keepdim=True) - changes) / max(1, len(changes) - 1)
    excess = changes - others
    largest = excess.max(1).values
    positive = largest[largest > 0]
    if not len(positive):
        return [None] * len(changes)
    scale = float(positive.median())
    relative = excess / (others + FLOOR * scale)
    return [int(row.argmax()) if top >= QUIET * scale else None for row, top in zip(relative, largest, strict=True)]
