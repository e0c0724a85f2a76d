"""torchvision's classifiers with random weights that behave as trained ones: nothing vanishes, and no head is zero."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import convnext, maxvit, mobilenetv3, regnet, resnet, shufflenetv2, swin_transformer, vision_transformer

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
    """`vgg` of `vgg11_bn`; that of a shallow one is the family whose blocks it has."""
    return re.split(r"[\d_]", name.removeprefix("shallow_"))[0]


SMALLEST = {min((name for name in NAMES if family(name) == each), key=parameters) for each in map(family, NAMES)}
"""One of each family."""


def shallow_mobilenet() -> nn.Module:
    """A MobileNet v3 of four blocks: with a gate and without, with a ReLU and with a Hardswish, with a shortcut and without."""
    blocks = [(16, 3, 16, 16, True, "RE", 2), (16, 3, 48, 24, False, "RE", 2), (24, 5, 72, 24, True, "HS", 1)]
    blocks += [(24, 5, 96, 48, True, "HS", 2)]
    settings = [mobilenetv3.InvertedResidualConfig(*each, dilation=1, width_mult=1.0) for each in blocks]
    return mobilenetv3.MobileNetV3(settings, last_channel=64, num_classes=CLASSES)


SWIN: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
SWIN |= {"window_size": [7, 7], "num_classes": CLASSES}

SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "shallow_convnext": lambda: convnext.ConvNeXt(
        [convnext.CNBlockConfig(width, wider, 1) for width, wider in ((24, 48), (48, 96), (96, 192), (192, None))],
        num_classes=CLASSES,
    ),
    "shallow_maxvit": lambda: maxvit.MaxVit(
        (128, 128),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32, 48, 64],
        block_layers=[1, 1, 1, 1],
        head_dim=16,
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    ),
    "shallow_mobilenet_v3": shallow_mobilenet,
    "shallow_regnet_y": lambda: regnet.RegNet(
        regnet.BlockParams([1, 1, 2, 1], [16, 32, 48, 64], [8] * 4, [1.0] * 4, [2] * 4, se_ratio=0.25), num_classes=CLASSES
    ),
    "shallow_resnet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
    "shallow_shufflenet_v2": lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], num_classes=CLASSES),
    "shallow_swin": lambda: swin_transformer.SwinTransformer(**SWIN),
    "shallow_swin_v2": lambda: swin_transformer.SwinTransformer(
        **SWIN, block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2
    ),
    "shallow_vit": lambda: vision_transformer.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=CLASSES
    ),
}
"""torchvision's own blocks of a family, each kind of them once or twice: deeper ones run the same code more often."""


def side_of(name: str) -> int:
    """A picture's side: small, with a map of more than one cell at the end."""
    if name in SHALLOW:
        return 128 if name == "shallow_maxvit" else 64
    if name.startswith("vit"):
        return 4 * int(name.rsplit("_", 1)[1])
    if name == "efficientnet_v2_l":  # of 64 pixels, half of the patches change its last map by no more than rounding
        return 96
    return {"maxvit": 224, "inception": 128, "alexnet": 96, "vgg": 96}.get(family(name), 64)


def built(name: str) -> nn.Module:
    """The architecture with random weights, statistics that fit them, and no head of zeros."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options = {"image_size": side_of(name)}
    made = SHALLOW.get(name, functools.partial(torchvision.models.get_model, name, num_classes=CLASSES, **options))
    module: nn.Module = made()
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
