"""Every classifier of torchvision: a layer by rule, and its map against autograd and the literal formula."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.models import nets
from tests.support.models.architectures import NAMES, SMALLEST, batch, built, family, side_of
from torch import Tensor, nn

from camserve.capture import Backend, open_backend
from camserve.core.config import Config
from camserve.explain import methods

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
TOLERANCE = 1e-5
LARGE = {"convnext_tiny", "maxvit_t", "swin_t", "vgg11", "vit_b_16", "wide_resnet50_2"}
QUICK = [*sorted({*SMALLEST} - LARGE), "shallow_convnext", "shallow_maxvit", "shallow_swin", "shallow_swin_v2", "shallow_vit"]
QUICK += ["efficientnet_v2_s", "mobilenet_v2", "regnet_x_400mf", "resnet50"]
"""The smallest of each family, and those that it does not stand for: other blocks, other norms. For the `LARGE` ones stand shallow ones
of the same blocks, AlexNet for a VGG (convolutions, a pool of fixed size, three linear layers), and a ResNet-50 for a wide one. The
others are slow: deeper and wider ones run the same code more often."""

TABLE = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in QUICK)]

EXPECTED = {
    "alexnet": r"features",
    "convnext": r"features",
    "densenet": r"features",
    "efficientnet": r"features",
    "googlenet": r"inception5b",
    "inception": r"Mixed_7c",
    "maxvit": r"blocks\.3",
    "mnasnet": r"layers",
    "mobilenet": r"features",
    "regnet": r"trunk_output",
    "resnet": r"layer4",
    "resnext": r"layer4",
    "shufflenet": r"conv5",
    "squeezenet": r"features",
    "swin": r"norm",
    "vgg": r"features",
    "vit": r"encoder\.layers\.encoder_layer_\d+\.ln_1",
    "wide": r"layer4",
}
"""What people choose by hand: the last map before pooling; for a transformer that reads one token, the norm before
the last attention."""


def top_classes(model: nn.Module, pictures: Tensor) -> Tensor:
    """The most probable class of each picture: another one's score may be 0 and flat (SqueezeNet ends in a ReLU)."""
    with torch.no_grad():
        return model(pictures).argmax(1)


def opened(name: str, model: object, *layers: str) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model, Config(layers=layers, channels_last=False), (side_of(name), side_of(name)), CPU)


def explained(made: Backend, pictures: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, activation, gradients and Grad-CAM++ maps at the default layer."""
    layer = made.layers[0]
    captured = made.capture.forward(pictures, [layer])
    activation, gradients = captured.activation(layer), captured.gradients(layer, torch.arange(len(pictures)), targets)
    return captured.logits, activation, gradients.expand_as(activation), methods.gradcam_plus_plus(activation, gradients)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to a share of the largest value expected, which is not 0."""
    scale = expected.abs().max()
    return found.shape == expected.shape and bool(scale > 0) and bool((found - expected).abs().max() <= TOLERANCE * scale)


def placed(values: Tensor, channels: int) -> Tensor:
    """A layer's output as `[N, C, h, w]`, by where its channels are; a token is dropped where the rest is a square."""
    if values.ndim == 3:
        cells = int((values.shape[1]) ** 0.5)
        values = values[:, -cells * cells :].reshape(len(values), cells, cells, -1)
    return values if values.shape[1] == channels else values.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", TABLE)
def test_every_architecture(name: str) -> None:
    """The rule finds the layer; its activation and gradients are those of autograd through all of the model; its map is eq. 19's."""
    model, pictures = built(name), batch(name)
    targets = top_classes(model, pictures)
    made = opened(name, model)
    (layer,) = made.layers
    assert re.fullmatch(EXPECTED[family(name)], layer)
    logits, activation, gradients, maps = explained(made, pictures, targets)
    scores, output, slope = nets.by_autograd(model, layer, pictures, targets)
    assert close(logits, scores)
    assert close(activation, placed(output, activation.shape[1]))
    assert close(gradients, placed(slope, activation.shape[1]))
    assert activation.shape[2] > 1
    for row in range(2):
        expected = oracle.gradcam_plus_plus(activation[row].numpy(), gradients[row].numpy(), rectify_sum=True)
        np.testing.assert_allclose(maps[row].numpy(), expected, rtol=0, atol=TOLERANCE * expected.max())
