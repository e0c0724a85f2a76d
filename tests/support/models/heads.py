"""Small nets that give their scores in the many ways in which people's models do, and what is right of each in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tests.support.comparison import oracle
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float64]
SIDE = 32
LAYER = "body"


class Net(nn.Module):
    """A map, pooling, and a head: one linear layer, or two with a function between, whose gradients have no closed form."""

    def __init__(self, classes: int = 5, deep: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.between: nn.Module = nn.Sequential(nn.Linear(8, 7), nn.Tanh()) if deep else nn.Identity()
        self.fc = nn.Linear(7 if deep else 8, classes)
        self.fc.weight.data *= 4
        self.end: nn.Module = nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 8]`."""
        return self.body(x).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """`[N, 8]` to `[N, classes]`."""
        return self.fc(self.between(features))

    def forward(self, x: Tensor) -> Tensor:
        """The logits, through the last module."""
        return self.end(self.logits(self.features(x)))


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of it."""
        return self.function(x)


class FeaturesFirst(Net):
    """`(features, logits)`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Unnamed."""
        features = self.features(x)
        return features, self.logits(features)


class Nested(Net):
    """`((features, map), [logits])`."""

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:  # type: ignore[override]
        """A list inside a tuple, and a map beside the features."""
        spread = self.body(x)
        features = spread.mean((2, 3))
        return (features, spread), [self.logits(features)]


class Named(Net):
    """A dictionary with the embedding first."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """By name."""
        features = self.features(x)
        return {"embedding": features, "prediction": self.logits(features)}


class Both(NamedTuple):
    """A named tuple's fields."""

    pooled: Tensor
    out: Tensor


class Tupled(Net):
    """A named tuple."""

    def forward(self, x: Tensor) -> Both:  # type: ignore[override]
        """By field."""
        features = self.features(x)
        return Both(features, self.logits(features))


class Squeezed(Net):
    """One logit without its axis, `[N]`."""

    def forward(self, x: Tensor) -> Tensor:
        """As `BCEWithLogitsLoss` takes it."""
        return self.logits(self.features(x)).squeeze(1)


class Sigmoid(Net):
    """A function in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of labels."""
        return torch.sigmoid(self.logits(self.features(x)))


class Softmax(Net):
    """A function in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of classes."""
        return functional.softmax(self.logits(self.features(x)), dim=1)


class Written(Net):
    """A sigmoid in the author's own words: nothing sees what goes into it."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of labels."""
        return 1 / (1 + torch.exp(-self.logits(self.features(x))))


def ending(module: nn.Module) -> Callable[..., Net]:
    """A net whose last module is this one."""

    def make(classes: int = 5, deep: bool = False) -> Net:
        net = Net(classes, deep)
        net.end = module
        return net

    return make


def pictures(count: int = 3) -> Tensor:
    """`[count, 3, SIDE, SIDE]`."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Right(NamedTuple):
    """What is right of one picture: its logits `[K]`, and each one's gradient, `[K, C, h, w]`, at the activation `[C, h, w]`."""

    logits: Floats
    activation: Floats
    gradients: Floats

    def map(self, target: int, sign: int = 1) -> Floats:
        """Grad-CAM++ of a logit, or of its negative."""
        return oracle.gradcam_plus_plus(self.activation, sign * self.gradients[target], rectify_sum=True)


def right(net: Net, picture: Tensor) -> Right:
    """By autograd in float64, from the activation to the logits, without the net's own forward."""
    double = copy.deepcopy(net).double()
    activation = double.body(picture[None].double()).detach().requires_grad_()
    logits = double.logits(activation.mean((2, 3)))[0]
    gradients = [torch.autograd.grad(each, activation, retain_graph=True)[0][0] for each in logits]
    return Right(logits.detach().numpy(), activation.detach()[0].numpy(), torch.stack(gradients).numpy())
