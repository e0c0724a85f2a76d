"""Candidates for sharper maps: smoothing, several layers in one, and what is new since 2024. `sharper.py` measures them.

RefineCAM won, and is served as `refinecam`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.fidelity.games import Candidate, method
from benchmarks.fidelity.scenes import LAYER, SIDE, Pixels, Seen
from camserve.explain.methods import METHODS, refine

STAGES = ("features.7", "features.13", LAYER)
"""Layers that are taken together, the finest first: strides of 8, 16 and 32 pixels."""

FINE = 4
"""Into how many parts a cell's side is divided where maps of moved pictures are put together."""

COUNT = 8
"""Pictures that a smoothed map is made from."""

NOISE = 0.15
"""Of SmoothGrad-CAM++: the noise's standard deviation, as a share of the picture's range."""

LEAST = 1e-30
"""Maps are divided by their maximum, or by this where they are 0 everywhere."""


# ---- Smoothing


def smoothed(name: str) -> Candidate:
    """The mean of a method's maps of a picture moved by parts of a cell, every other time mirrored, each put back exactly.

    Maps are drawn bilinearly at `FINE` times their size, where the move is a whole number of parts.
    """

    def made(seen: Seen, target: int) -> Tensor:
        found = []
        for (down, across, mirrored), view in zip(moves(), seen.other("moved", _moved), strict=True):
            drawn = put_back(draw_fine(method(name)(view, target)), -down, -across)
            found.append(drawn.flip(1) if mirrored else drawn)
        return torch.stack(found).mean(0)

    return made


def moves() -> Sequence[tuple[int, int, bool]]:
    """How pictures are moved, in parts of a cell down and across, and whether they were mirrored before; the first is not."""
    parts = np.random.default_rng(0).integers(-FINE // 2, FINE // 2 + 1, (COUNT, 2))
    parts[0] = 0
    return [(int(down), int(across), place % 2 == 1) for place, (down, across) in enumerate(parts)]


def _moved(seen: Seen) -> list[Seen]:
    part = seen.pixels.shape[0] // seen.activation.shape[2] // FINE
    views = []
    for down, across, mirrored in moves():
        pixels = seen.pixels[:, ::-1] if mirrored else seen.pixels
        views.append(seen.again(np.ascontiguousarray(shift(pixels, down * part, across * part))))
    return views


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


def smooth_gradcam_plus_plus(seen: Seen, target: int) -> Tensor:
    """SmoothGrad-CAM++ of Omeiza et al. 2019 (arXiv 1908.01224): the mean of Grad-CAM++'s maps of noisy pictures."""
    return torch.stack([method("gradcam++")(view, target) for view in seen.other("noisy", _noisy)]).mean(0)


def _noisy(seen: Seen) -> list[Seen]:
    random = np.random.default_rng(0)
    pixels = seen.pixels.astype(np.float32)
    spread = NOISE * (pixels.max() - pixels.min())
    return [seen.again(pixels + random.normal(0, spread, pixels.shape).astype(np.float32)) for _ in range(COUNT)]


# ---- Several layers in one


def _layer(name: str, layer: str) -> Candidate:
    """A method at another layer."""
    return lambda seen, target: METHODS[name].function(seen.captured.activation(layer), seen.gradient(target, layer))[0]


def _drawn(maps: Sequence[Tensor]) -> Tensor:
    """Maps over their maxima, drawn bilinearly at the first one's size, `[n, h, w]`."""
    size = maps[0].shape
    drawn = [functional.interpolate((each / each.max().clamp_min(LEAST))[None, None], size, mode="bilinear") for each in maps]
    return torch.cat(drawn)[:, 0]


def fused(name: str, *, gain: float = 2.0) -> Candidate:
    """Several layers in one, as LayerCAM's authors do: maps over their maxima, all but the last as `tanh(gain x)`; the largest.

    They are drawn at the size of the finest. (Jiang et al. 2021, section III-D.)
    """

    def made(seen: Seen, target: int) -> Tensor:
        drawn = _drawn([_layer(name, layer)(seen, target) for layer in STAGES])
        earlier = torch.tanh(gain * drawn[:-1]) / np.tanh(gain)
        return torch.cat([earlier, drawn[-1:]]).amax(0)

    return made


def refined(name: str, last: str = "") -> Candidate:
    """RefineCAM, as it is served where `name` is `layercam` and `last` is `contrast`.

    Args:
        name: the method at each layer.
        last: another one at the last layer.
    """

    def made(seen: Seen, target: int) -> Tensor:
        maps = [_layer(name, layer)(seen, target) for layer in STAGES[:-1]]
        return refine([each[None] for each in (*maps, method(last or name)(seen, target))])[0]

    return made


# ---- Another score


def rest(*, shapley: bool) -> Candidate:
    """Grad-CAM, or Shapley-CAM, of the score `y_t + log p_t` that Shapley-CAM's author proposes (Cai 2025, arXiv 2501.06261).

    Shapley-CAM's weights are `g - H A / 2`, with the second derivatives H; for a logit behind global average pooling and one
    linear layer H is 0, and it is Grad-CAM. With the rows G of the logits' gradients, as there, and `S = sum_ab A_ab`:

        g = 2 G_t - sum_k p_k G_k,   H A = (sum_k p_k G_k) (sum_k p_k G_k S) - sum_k p_k G_k (G_k S)
    """

    def made(seen: Seen, target: int) -> Tensor:
        activation = seen.activation[0].double()
        rows = all_gradients(seen)
        chance = seen.logits.double().softmax(0)
        mean = chance @ rows
        weights = 2 * rows[target] - mean
        if shapley:
            mass = activation.sum((1, 2))
            weights = weights - (mean * (mean @ mass) - (chance * (rows @ mass)) @ rows) / 2
        return torch.einsum("c,chw->hw", weights, activation).relu().float()

    return made


def all_gradients(seen: Seen) -> Tensor:
    """The gradients of all logits `[K, C]`, one for all cells: the linear layer's rows over their number.

    Read at the size at which the closed form was tried: at another one each picture may be asked for once only.
    """
    (usual,) = seen.other("usual", lambda other: [other.again(np.zeros((SIDE, SIDE, 3), np.uint8))])
    classes = torch.arange(len(seen.logits))
    found = usual.captured.gradients(LAYER, torch.zeros_like(classes), classes)
    assert found.shape[2:] == (1, 1)
    return found[:, :, 0, 0].double() * (usual.activation[0, 0].numel() / seen.activation[0, 0].numel())


ONE_LAYER: Mapping[str, Candidate] = {
    "`gradcam`, smoothed": smoothed("gradcam"),
    "`gradcam++`, smoothed": smoothed("gradcam++"),
    "`contrast`, smoothed": smoothed("contrast"),
    "SmoothGrad-CAM++": smooth_gradcam_plus_plus,
    "`gradcam` of y + log p": rest(shapley=False),
    "Shapley-CAM of y + log p": rest(shapley=True),
}
"""Candidates of the last layer, by what the table calls them."""

THREE_LAYERS: Mapping[str, Candidate] = {
    "`layercam`, fused": fused("layercam"),
    "`hirescam`, fused": fused("hirescam"),
    "RefineCAM of `gradcam++`": refined("gradcam++"),
    "RefineCAM of `layercam`": refined("layercam"),
    "RefineCAM of `hirescam`": refined("hirescam"),
    "RefineCAM of `layercam`, `contrast` last": refined("layercam", "contrast"),
}
"""Candidates of `STAGES`."""
