"""How far answers in float32 may lie from each other, and from the exact ones: by the arithmetic, not by one processor.

Each processor has kernels of its own, which add the same products in another order. A sum of n products is off by about sqrt(n)
roundings in any order (Higham and Mary 2019, SIAM Journal on Scientific Computing 41). Maps are compared before they are scaled,
relative to their maximum: dividing by the map's range multiplies errors by maximum / range, which is large for an even map.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tests.support.comparison import oracle
from torch import Tensor, nn

from camserve.capture import open_backend
from camserve.core.config import Config

Floats = NDArray[np.float64]

ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""What one operation is off by at most, relative to its result."""

SURELY = 4
"""Standard deviations: chance goes beyond them once in sixteen thousand."""

DRAWN = 4
"""With how many errors drawn at random a network runs."""

MARGIN = 3
"""Over the largest of those."""


def error_of_sum(terms: int) -> float:
    """By how much two sums of so many products may differ in float32, as a share of the largest such sum."""
    return 2 * SURELY * ROUNDING["float32"] * terms**0.5


def error_of_half(precision: str) -> float:
    """By how much a map may move when pictures, weights and activations are rounded to this type, as a share of its maximum.

    The products of a sum are rounded independently of each other, and sums are made in float32; so what is rounded last counts,
    the activation and the weight of its channel.
    """
    return 2 * ROUNDING[precision]


def unscaled(heatmap: ArrayLike, limits: object) -> Floats:
    """The map that a heatmap, which must reach from 0 to 1, was scaled from; `limits`: its (minimum, maximum)."""
    values = np.asarray(heatmap, np.float64)
    assert (values.min(), values.max()) == (0, 1)
    low, high = np.asarray(limits, np.float64)
    return values * (high - low) + low


def assert_close(found: ArrayLike, wanted: ArrayLike, error: float) -> None:
    """Two maps, not scaled: of one shape, and nowhere further apart than `error` times the largest value wanted."""
    one, other = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=error * other.max())


@dataclass(frozen=True)
class Exact:
    """What a network says of a picture in float64, and how far from that float32 may be.

    Attributes:
        probabilities: of all classes.
        map: Grad-CAM++ by the literal formula, `[h, w]`, not scaled.
        probability_error: of any class.
        map_error: as a share of the map's maximum.
    """

    probabilities: Floats
    map: Floats
    probability_error: float
    map_error: float


def exact(model: nn.Module, layer: str, picture: Tensor, target: int) -> Exact:
    """Runs a copy of an eager model in float64, beside others in which the sums of each layer are off by as much as float32's.

    How much of that reaches the map depends on the network: a norm whose input varies little multiplies it by tens. Float32
    moves a map by that much on one processor or another, whichever way the network is run.
    """
    double = copy.deepcopy(model).double().eval()
    size = (picture.shape[-2], picture.shape[-1])
    config = Config(channels=len(picture), layers=(layer,), channels_last=False)
    made = open_backend(double, config, size, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def shake(part: nn.Module, _given: object, output: Tensor) -> Tensor:
        """Leaves the first picture's output, and moves the others' by `sqrt(terms)` roundings of a usual value."""
        terms = part.weight[0].numel()  # type: ignore[index]
        size = ROUNDING["float32"] * terms**0.5 * output.detach().square().mean().sqrt()
        errors = torch.randn(output.shape, generator=generator, dtype=output.dtype) * size
        errors[:1] = 0
        return output + errors

    for part in double.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.LayerNorm):
            part.register_forward_hook(shake)
    count = 1 + DRAWN
    captured = made.capture.forward(picture.double().expand(count, -1, -1, -1), [layer])
    activation = captured.activation(layer)
    assert activation.dtype == torch.float64
    gradients = captured.gradients(layer, torch.arange(count), torch.full((count,), target)).expand_as(activation)
    probabilities = captured.logits.double().softmax(1).numpy()
    pairs = zip(activation.numpy(), gradients.double().numpy(), strict=True)
    maps = np.stack([oracle.gradcam_plus_plus(*pair, rectify_sum=True) for pair in pairs])
    moved, swayed = (float(MARGIN * np.abs(each[1:] - each[0]).max()) for each in (probabilities, maps))
    return Exact(probabilities[0], maps[0], moved + error_of_sum(probabilities.shape[1]), swayed / float(maps[0].max()))
