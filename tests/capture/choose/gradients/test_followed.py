"""Whether gradients say how the scores follow a layer: doubted where parts behind it are cut off, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_backend
from camserve.core.config import Config

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")


class Headed(nn.Module):
    """Convolutions to 6 channels, and a head that is a function of the map and three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)
        self.other = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(6)


def mean(x: Tensor) -> Tensor:
    """Global average pooling."""
    return x.mean((2, 3))


class Guided(torch.autograd.Function):
    """A ReLU that lets positive gradients through alone, as guided backpropagation leaves it in a model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """As any ReLU."""
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Not the slope of what `forward` gives."""
        (x,) = ctx.saved_tensors
        return gradient.relu() * (x > 0)


class Sign(torch.autograd.Function):
    """A sign that lets gradients through as they come: a straight-through estimator, as in binary networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """1 or -1."""
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As of the input."""
        return gradient


def attend(x: Tensor, values: Tensor) -> Tensor:
    """Attention over cells, by `values`."""
    return (x * (4 * values.mean(1)).flatten(1).softmax(1).view(len(x), 1, *x.shape[2:])).sum((2, 3))


def gate(x: Tensor) -> Tensor:
    """A gate of each cell."""
    return (20 * (x.mean(1, keepdim=True) - 0.3)).sigmoid()


def choose_nearest(net: Headed, x: Tensor) -> Tensor:
    """The nearest of few vectors in each cell, straight through, as vector quantization does."""
    cells, book = x.permute(0, 2, 3, 1), torch.rand(40, 6, generator=torch.Generator().manual_seed(1))
    nearest = book[torch.cdist(cells.flatten(0, 2), book).argmin(1)].view(cells.shape)
    return net.fc((cells + (nearest - cells).detach()).mean((1, 2)))


def filter_rows(x: Tensor) -> Tensor:
    """A global filter of frequencies, and a ReLU of what it gives."""
    spectrum = torch.fft.rfft2(x, norm="ortho")
    weight = torch.randn(spectrum.shape[1:], dtype=spectrum.dtype, generator=torch.Generator().manual_seed(1))
    return torch.fft.irfft2(spectrum * weight, s=x.shape[-2:], norm="ortho").relu()


def convolve_by_itself(net: Headed, x: Tensor) -> Tensor:
    """A convolution whose kernels are made of the map's means."""
    kernels = (mean(x) @ torch.randn(6, 54, generator=torch.Generator().manual_seed(1))).view(-1, 1, 3, 3)
    return net.fc(mean(functional.conv2d(x.flatten(0, 1)[None], kernels, padding=1, groups=len(kernels)).view(x.shape).relu()))


Head = Callable[[Headed, Tensor], Tensor]
LOST: dict[str, Head] = {
    "detached branch": lambda net, x: net.fc(mean(x**2)) + 3 * net.fc(mean(x.detach())),
    "own backward": lambda net, x: net.other(Guided.apply(net.fc(mean(x)))),
    "gradient of a tenth": lambda net, x: net.fc(mean(0.1 * x + 0.9 * x.detach())).sinh(),
    "detached attention": lambda net, x: net.fc(attend(x, 10 * x.detach())),
    "detached gate": lambda net, x: net.fc(mean(x * gate(x.detach()))),
    "straight-through sign": lambda net, x: net.fc(mean(Sign.apply(x - 0.3))),
    "straight-through vectors": choose_nearest,
}
FOLLOWED: dict[str, Head] = {
    "maximum": lambda net, x: net.fc(x.amax((2, 3))),
    "norm": lambda net, x: net.fc(net.norm(mean(x))),
    "two layers": lambda net, x: net.other(net.fc(mean(x)).relu()),
    "products": lambda net, x: net.fc(mean(x * mean(x)[..., None, None].sigmoid())),
    "attention": lambda net, x: net.fc(attend(x, 10 * x)),
    "gate": lambda net, x: net.fc(mean(x * gate(x))),
}
CURVED: dict[str, Head] = {
    "generalized mean": lambda net, x: net.fc(mean(x.clamp(min=1e-6) ** 3) ** (1 / 3)),
    "global filter": lambda net, x: net.fc(mean(filter_rows(x))),
    "dynamic convolution": convolve_by_itself,
    "difference of halves": lambda net, x: net.fc(mean((x - x.flip(-1)).abs())),
    "wave": lambda net, x: net.fc(mean((10 * x).sin())),
    "kinks just there": lambda net, x: net.fc(mean(0.3 * x + (x - x.detach()).relu())),
    "threshold": lambda net, x: net.fc(mean(functional.hardshrink(x, 0.3))),
    "four levels of each unit": lambda net, x: net.fc(mean(x + ((4 * x).round() / 4 - x).detach())),
}
SEEDS = range(3)


def doubts_of(head: Head, seed: int = 0) -> str:
    """What speaks against the trunk in front of this head."""
    torch.manual_seed(seed)
    model = Headed()
    model.forward = lambda x: head(model, model.trunk(x))
    config = Config(channels_last=False, layers=("trunk",))
    return open_backend(model.eval(), config, (nets.SIDE, nets.SIDE), CPU).doubts.get("trunk", "")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LOST)
def test_gradients_that_are_not_how_the_scores_follow_are_doubted(name: str, seed: int) -> None:
    """A map made of them leaves out what they leave out."""
    assert doubts_of(LOST[name], seed).startswith("gradients do not say how the scores follow it")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*FOLLOWED, *CURVED])
def test_gradients_that_are_how_the_scores_follow_are_not_doubted(name: str, seed: int) -> None:
    """Kinks, curves and jumps behind the layer are no fault, nor are levels that gradients pass straight through."""
    assert doubts_of((FOLLOWED | CURVED)[name], seed) == ""


@pytest.mark.parametrize("name", FOLLOWED)
def test_rounding_is_not_doubted(name: str) -> None:
    """In half precision the scores follow by steps, or stay."""

    def halved(net: Headed, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return FOLLOWED[name](net, x).float()

    assert [doubts_of(halved, seed) for seed in SEEDS] == [""] * len(SEEDS)
