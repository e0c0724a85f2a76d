"""Small classifiers of other libraries with random weights, which behave as trained ones: nothing vanishes, no head is zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture import synthesize_pictures
from camserve.core.config import Config

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: `library: architecture`.
        side: of its pictures, in pixels.
        build: makes it, untrained.
        channels: of its pictures.
    """

    name: str
    side: int
    build: Callable[[], nn.Module]
    channels: int = 3

    @property
    def config(self) -> Config:
        """As its archive would have it; nothing is timed."""
        mean = {} if self.channels == 3 else {"mean": (0.5,) * self.channels, "std": (0.5,) * self.channels}
        return Config.from_mapping({"channels": self.channels, "channels_last": False, **mean})

    def pictures(self, count: int = 2, seed: int = 5) -> Tensor:
        """Pictures `[count, channels, side, side]`."""
        return synthesize_pictures((self.side, self.side), count, seed, self.config)

    def make(self) -> nn.Module:
        """The network in evaluation mode, the same each time."""
        torch.manual_seed(0)
        model = self.build().eval()
        enliven(model, self.pictures(4, seed=7))
        return model


SCALES = ("gamma", "lambda", "layer_scale", "layerscale")
"""Parts of the names of parameters that scale a residual branch, to almost nothing before training."""


def enliven(model: nn.Module, pictures: Tensor) -> None:
    """Give norms the statistics of these pictures, a head of zeros random weights, and residual branches their full part."""
    for name, parameter in model.named_parameters():
        if any(scale in name.lower() for scale in SCALES) and parameter.abs().max() < 1e-2:
            nn.init.ones_(parameter)
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(weight, nn.Parameter) and weight.ndim == 1 and not weight.any():
            nn.init.ones_(weight)  # the last norm of a residual branch, which would leave it out

    def learn(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-3

    handles = [part.register_forward_pre_hook(learn) for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        model(pictures)
    for handle in handles:
        handle.remove()
