"""torchvision's classifiers with random weights that behave as trained ones: nothing vanishes, and no head is zero."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from camserve.capture import synthesize_pictures
from camserve.core.config import Config
from camserve.pictures.decode import open_picture
from camserve.pictures.preprocess import Preprocess
from camserve.tools.packaging.trial import draw_test_picture

CLASSES = 10
NAMES = torchvision.models.list_models(module=torchvision.models)


@functools.cache
def parameters(name: str) -> int:
    """How many parameters the published model has."""
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def family(name: str) -> str:
    """`vgg` of `vgg11_bn`."""
    return re.split(r"[\d_]", name)[0]


SMALLEST = {min((name for name in NAMES if family(name) == each), key=parameters) for each in map(family, NAMES)}
"""One of each family."""


def side_of(name: str) -> int:
    """A picture's side: small, with a map of more than one cell at the end."""
    if name.startswith("vit"):
        return 4 * int(name.rsplit("_", 1)[1])
    return {"maxvit": 224, "inception": 128, "alexnet": 96, "vgg": 96}.get(family(name), 64)


def built(name: str) -> nn.Module:
    """The architecture with random weights, statistics that fit them, and no head of zeros."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options = {"image_size": side_of(name)}
    module: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES, **options)
    for part in module.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
    side = side_of(name)
    settle(module.eval(), torch.cat([synthesize_pictures((side, side), 8, seed=5), tried(name)[None]]))
    return module


def settle(module: nn.Module, pictures: Tensor) -> None:
    """Gives each batch normalisation the statistics of what reaches it, so that activations neither vanish nor explode.

    Of pictures that are unlike these, they may: a channel that hardly varied is divided by its small deviation, and so is its
    rounding.
    """

    def learn(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-3

    handles = [part.register_forward_pre_hook(learn) for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        module(pictures)
    for handle in handles:
        handle.remove()


def prepared(name: str) -> Config:
    """How its pictures are prepared."""
    return Config(resize=side_of(name), crop=side_of(name), channels_last=False)


def tried(name: str) -> Tensor:
    """The picture that packaging tries an archive with, prepared: `[3, side, side]`."""
    config = prepared(name)
    return Preprocess(config)(open_picture(draw_test_picture(config), config))


def batch(name: str) -> Tensor:
    """Two pictures of the architecture's side."""
    return synthesize_pictures((side_of(name), side_of(name)), seed=5)
