"""Where the cells of maps lie, measured: a patch of the picture is changed at many places, and where the map changes is looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DISTANCE = 0.6
"""Cells, the median over many places: maps lie where the answer says up to this."""

MARGIN = 0.1
"""Places lie so far inside the picture, as a share: a convolution's border is no place like others."""

PATCH = 1 / 12
"""The side of what is changed, as a share of the picture's."""

STRENGTH = 0.3
"""Of the noise, as a share of the picture's standard deviation: weak, so that what all cells share (a gate, a norm) hardly moves."""

STEPS = (0.7548776662466927, 0.5698402909980532)
"""Steps between places, as shares of the height and the width, that spread them evenly, and off every diagonal (the R2 sequence)."""


class Alignment(NamedTuple):
    """Distances in cells, between where the picture was changed and where the map changed.

    Attributes:
        distance: their median over all places.
        down, right: the median displacement. Convolutions of odd size and step 2 see up to half a cell further up and left than
            their output's grid says, whatever explains them; that is in the network.
        rest: the median distance beside this displacement.
        focus: how many times as far the cell that changes most moves as all on average: near 1, every place changes all cells,
            and the distance says nothing.
    """

    distance: float
    down: float
    right: float
    rest: float
    focus: float


def measure_alignment(
    map_of: Callable[[Tensor], Tensor], pictures: Tensor, places: int = 24, part: Sequence[float] = (0, 0, 1, 1)
) -> Alignment:
    """Measure where the cells of `map_of` lie.

    Args:
        map_of: gives the activation `[N, C, h, w]` of pictures `[N, C, H, W]`.
        pictures: `[P, C, H, W]`; the places are changed in each, and what moves is added up.
        part: of the picture, in which the places lie, (top, left, bottom, right) in shares of its sides.
    """
    spots = [[MARGIN + (1 - 2 * MARGIN) * ((0.5 + (turn + 1) * step) % 1) for step in STEPS] for turn in range(places)]
    spots = [[low + each * (high - low) for each, low, high in zip(spot, part[:2], part[2:], strict=True)] for spot in spots]
    moved = torch.stack([_moved(map_of, picture, spots, seed) for seed, picture in enumerate(pictures)]).mean(0)
    height, width = moved.shape[1:]
    peaks = moved.amax((1, 2), keepdim=True)
    kept = (moved - 0.5 * peaks).clamp(min=0)
    shares = kept / kept.sum((1, 2), keepdim=True)
    wanted = torch.tensor(spots, dtype=torch.float64) * torch.tensor([height, width])
    middles = [torch.arange(count, dtype=torch.float64) + 0.5 for count in (height, width)]
    found = torch.stack([shares.sum(2) @ middles[0], shares.sum(1) @ middles[1]], 1)
    away = found - wanted
    shift = away.median(0).values
    focus = float((peaks[:, 0, 0] / moved.mean((1, 2))).median())
    distances = (float(each.norm(dim=1).median()) for each in (away, away - shift))
    distance, rest = distances
    return Alignment(distance, float(shift[0]), float(shift[1]), rest, focus)


def _moved(map_of: Callable[[Tensor], Tensor], picture: Tensor, spots: Sequence[Sequence[float]], seed: int) -> Tensor:
    """Return how far each cell moves with a change at each spot, `[places, h, w]`, beside how far it does with any."""
    generator = torch.Generator().manual_seed(seed)
    sides = picture.shape[1:]
    patch = [max(2, round(PATCH * side)) for side in sides]
    changed = [picture]
    for spot in spots:
        top, left = (
            min(max(0, round(place * side - size / 2)), side - size) for place, side, size in zip(spot, sides, patch, strict=True)
        )
        noise = torch.randn(len(picture), *patch, generator=generator).to(picture)
        other = picture.clone()
        other[:, top : top + patch[0], left : left + patch[1]] += STRENGTH * picture.std() * noise
        changed.append(other)
    maps = map_of(torch.stack(changed)).double()
    energy = (maps[1:] - maps[:1]).square().sum(1)
    usual = energy.mean(0, keepdim=True)
    return energy / (usual + 0.05 * usual.mean())
