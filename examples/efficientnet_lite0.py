"""EfficientNet-Lite0, a classifier of 1,000 ImageNet classes for pictures of 224x224, as TorchServe takes a model's file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


class EfficientNetLite0(nn.Sequential):
    """Trunk (`features`: 1280 channels, 7x7 cells, behind a ReLU6), global average pooling, and one linear layer.

    Args:
        published: a file of the published weights. TorchServe gives none, and loads this module's own state dict.
    """

    def __init__(self, published: str | Path | None = None) -> None:
        net = EfficientNet.from_name("efficientnet-lite0")
        if published is not None:
            net.load_state_dict(torch.load(published, map_location="cpu", weights_only=True))
        stem = (net._conv_stem, net._bn0, nn.ReLU6())
        top = (net._conv_head, net._bn1, nn.ReLU6())
        super().__init__(
            OrderedDict(
                features=nn.Sequential(*stem, *net._blocks, *top),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                classifier=net._fc,
            )
        )
