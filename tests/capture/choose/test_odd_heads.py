"""Classifiers with odd heads: the default layer holds all that counts, lies where the picture does, and its maps are right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.support.comparison import oracle
from tests.support.comparison.closeness import assert_close
from tests.support.models import odd_heads
from torch import Tensor, nn

from camserve.capture import open_backend
from camserve.core.config import Config
from camserve.explain.methods import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.numeric]

CELLS_OFF = 1.5
"""A border of zeros moves what a patch changes most by a cell along each axis; a wrong reading of cells moves it by several."""


@pytest.mark.parametrize(("make", "layer"), odd_heads.ODD.values(), ids=odd_heads.ODD)
def test_odd_heads(make: Callable[[], nn.Module], layer: str) -> None:
    """Against autograd in float64, from the layer's own output on."""
    net, given = odd_heads.lively(make), odd_heads.pictures()
    exact = copy.deepcopy(net).double()
    made = open_backend(net, Config(channels_last=False), (odd_heads.SIDE, odd_heads.SIDE), torch.device("cpu"))
    assert made.layers == (layer,)
    assert made.bypass[layer] == pytest.approx(0, abs=1e-5)
    assert made.doubts == {}
    distance = made.aligned[layer].distance
    assert distance is not None
    assert distance <= CELLS_OFF
    if "+" in layer:  # maps of several layers at once have tests of their own
        return
    captured = made.capture.forward(given, [layer])
    targets = captured.logits.argmax(1)
    maps = METHODS["gradcam++"].function(captured.activation(layer), captured.gradients(layer, torch.arange(len(given)), targets))
    leaf, gradients = differentiate(exact, layer, given, targets)
    for each, activation, gradient in zip(maps, leaf, gradients, strict=True):
        wanted = oracle.gradcam_plus_plus(
            *(as_map(part, made.aligned[layer].site.layout.grid).numpy() for part in (activation, gradient)), rectify_sum=True
        )
        assert_close(each / wanted.max(), wanted / wanted.max(), 1e-4)


def differentiate(net: nn.Module, layer: str, given: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and its gradients."""
    leaves: list[Tensor] = []

    def replace(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1]

    handle = net.get_submodule(layer).register_forward_hook(replace)
    scores = net(given.double())
    handle.remove()
    (gradients,) = torch.autograd.grad(scores[torch.arange(len(given)), targets].sum(), leaves[-1])
    return leaves[-1].detach(), gradients


def as_map(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens `[T, C]` as `[C, h, w]`."""
    return values if values.ndim == 3 else values.T.reshape(-1, *grid)
