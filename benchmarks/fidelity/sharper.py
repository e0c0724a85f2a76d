"""Candidates for sharper maps: smoothing over flips and shifts, several layers in one, SmoothGrad-CAM++, Shapley-CAM.

What does not beat Grad-CAM++ or Grad-CAM on a row of the table is not offered; `benchmarks/README.md` has the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.fidelity.games import Candidate, method
from benchmarks.fidelity.scenes import LAYER, Pixels, Seen
from camserve.explain.methods import METHODS

STAGES = ("features.7", "features.13", LAYER)
"""Layers that are taken together, the finest first: strides of 8, 16 and 32 pixels."""

FINE = 4
"""Into how many parts a cell's side is divided where maps of moved pictures are put together."""


def smoothed(name: str, count: int, *, flips: bool = True) -> Candidate:
    """The mean of a method's maps of a picture moved by parts of a cell, every other time mirrored, each put back exactly.

    Maps are drawn bilinearly at `FINE` times their size, where the move is a whole number of parts.
    """

    def made(seen: Seen, target: int) -> Tensor:
        pixels = seen.pixels
        cell = pixels.shape[0] // seen.activation.shape[2]
        part = cell // FINE
        moves = np.random.default_rng(0).integers(-FINE // 2, FINE // 2 + 1, (count, 2))
        moves[0] = 0
        total = None
        for place, (down, across) in enumerate(moves.tolist()):
            mirrored = flips and place % 2 == 1
            moved = shift(pixels[:, ::-1] if mirrored else pixels, down * part, across * part)
            found = draw_fine(method(name)(seen.again(np.ascontiguousarray(moved)), target))
            found = put_back(found, -down, -across)
            found = found.flip(1) if mirrored else found
            total = found if total is None else total + found
        assert total is not None
        return total / count

    return made


def shift(pixels: Pixels, down: int, across: int) -> Pixels:
    """Move a picture; what comes in at the edge repeats it."""
    rows = np.clip(np.arange(pixels.shape[0]) - down, 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(pixels.shape[1]) - across, 0, pixels.shape[1] - 1)
    return pixels[rows][:, columns]


def draw_fine(found: Tensor) -> Tensor:
    """Draw a map bilinearly, `FINE` times as large: half-pixel centres."""
    drawn: Tensor = functional.interpolate(found[None, None], scale_factor=FINE, mode="bilinear")[0, 0]
    return drawn


def put_back(found: Tensor, down: int, across: int) -> Tensor:
    """Move a map; its edge is repeated where the moved picture showed nothing."""
    rows = (torch.arange(found.shape[0]) - down).clamp(0, found.shape[0] - 1)
    columns = (torch.arange(found.shape[1]) - across).clamp(0, found.shape[1] - 1)
    return found[rows][:, columns]


def fused(name: str, layers: Sequence[str], *, gain: float = 2.0) -> Candidate:
    """Several layers in one, as LayerCAM's authors do: maps over their maxima through `tanh(gain x)`, the largest at each place.

    All but the last are scaled so; they are drawn at the size of the finest. (Jiang et al. 2021, section III-D.)
    """

    def made(seen: Seen, target: int) -> Tensor:
        maps = [METHODS[name].function(seen.captured.activation(each), seen.gradient(target, each))[0] for each in layers]
        height, width = maps[0].shape
        drawn = []
        for place, found in enumerate(maps):
            scaled = found / found.max().clamp_min(1e-30)
            scaled = scaled if place == len(maps) - 1 else torch.tanh(gain * scaled) / np.tanh(gain)
            drawn.append(functional.interpolate(scaled[None, None], (height, width), mode="bilinear")[0, 0])
        return torch.stack(drawn).amax(0)

    return made


def multiplied(name: str, layers: Sequence[str]) -> Candidate:
    """Several layers in one, by the geometric mean: a place counts where all of them have it."""

    def made(seen: Seen, target: int) -> Tensor:
        maps = [METHODS[name].function(seen.captured.activation(each), seen.gradient(target, each))[0] for each in layers]
        size = maps[0].shape
        drawn = [
            functional.interpolate(each[None, None] / each.max().clamp_min(1e-30), size, mode="bilinear")[0, 0] for each in maps
        ]
        whole: Tensor = torch.stack(drawn).prod(0) ** (1 / len(drawn))
        return whole

    return made


def smooth_gradcam_plus_plus(count: int = 8, share: float = 0.15) -> Candidate:
    """SmoothGrad-CAM++ of Omeiza et al. 2019 (arXiv 1908.01224): Grad-CAM++ of noisy pictures, the mean of their maps.

    The noise's standard deviation is a share of the picture's range.
    """

    def made(seen: Seen, target: int) -> Tensor:
        random = np.random.default_rng(0)
        pixels = seen.pixels.astype(np.float32)
        spread = share * (pixels.max() - pixels.min())
        found = [
            method("gradcam++")(seen.again(pixels + random.normal(0, spread, pixels.shape).astype(np.float32)), target)
            for _ in range(count)
        ]
        return torch.stack(found).mean(0)

    return made


def candidates() -> Mapping[str, Candidate]:
    """All of them, by what the table calls them."""
    return {
        "`gradcam` smoothed over 8 flips and shifts": smoothed("gradcam", 8),
        "`gradcam++` smoothed over 8 flips and shifts": smoothed("gradcam++", 8),
        "`contrast` smoothed over 8 flips and shifts": smoothed("contrast", 8),
        "`layercam` of three layers (tanh, maximum)": fused("layercam", STAGES),
        "`hirescam` of three layers (tanh, maximum)": fused("hirescam", STAGES),
        "`hirescam` of three layers (product)": multiplied("hirescam", STAGES),
        "SmoothGrad-CAM++, 8 noisy pictures": smooth_gradcam_plus_plus(),
    }
