"""The gradient of a single picture behind a batch norm: torch's own is shuffled where the gradient lies otherwise than the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.comparison.closeness import error_of_sum
from tests.support.models import nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_backend
from camserve.core.config import Config

SIDE, CHANNELS = 32, 8


class Tokens(nn.Module):
    """A map is normed, and goes on as tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, CHANNELS, 8, 8), nn.BatchNorm2d(CHANNELS)
        self.mix, self.fc = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, nets.CLASSES)
        self.norm.running_var = 0.5 + torch.rand(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.fc(functional.gelu(self.mix(tokens)).mean(1))


class Maps(Tokens):
    """Tokens become a map again, and are normed then."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        tokens = self.mix(self.conv(x).flatten(2).transpose(1, 2))
        return self.fc(functional.gelu(self.norm(tokens.transpose(1, 2).unflatten(2, (4, 4))).flatten(2)).mean(2))


class Instances(Tokens):
    """As the first, of each picture's own statistics: torch norms by a batch norm there too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(CHANNELS)  # type: ignore[assignment]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["eager", "channels last", "script", "trace", "exported"])
@pytest.mark.parametrize("net", [Tokens, Maps, Instances])
def test_a_single_picture_has_the_gradient_that_it_has_among_others(net: type[Tokens], kind: str) -> None:
    """That of float64's autograd, however often the model has run: an optimized program hides its norms."""
    pictures, kept = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), kind
    model: object = net().eval()
    if kind not in ("eager", "channels last"):
        model = nets.stored(net().eval(), kind, pictures)
    config = Config(layers=("conv",), channels_last=kept == "channels last")
    capture = open_backend(model, config, (SIDE, SIDE), torch.device("cpu")).capture
    exact = net().eval().double()
    outputs: list[Tensor] = []
    exact.conv.register_forward_hook(lambda _module, _given, output: outputs.append(output))
    (wanted,) = torch.autograd.grad(exact(pictures.double())[:, 3].sum(), outputs)
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    for count in (2, 1, 2, 1, 1, 1):
        captured = capture.forward(pictures[:count].contiguous(memory_format=form), ["conv"])
        found = captured.gradients("conv", torch.tensor([0]), torch.tensor([3]))[0]
        error = float(np.abs(found.double().numpy() - wanted[0].numpy()).max() / wanted[0].abs().max())
        assert error <= error_of_sum(CHANNELS * 3 * 64)
