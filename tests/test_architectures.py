"""Every classifier of torchvision: a layer by rule, and its map against autograd and the literal formula."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
import torchvision
from tests import nets, oracle
from torch import Tensor, nn

from camserve import cam
from camserve.capture import Backend, open_backend, synthetic_picture
from camserve.config import Config

CPU = torch.device("cpu")
TOLERANCE = 1e-5
CLASSES = 10
QUICK = 60e6
"""Models of more parameters are slow, but for the smallest of each family."""

NAMES = torchvision.models.list_models(module=torchvision.models)


@functools.cache
def parameters(name: str) -> int:
    """How many parameters the published model has."""
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def family(name: str) -> str:
    """`vgg` of `vgg11_bn`."""
    return re.split(r"[\d_]", name)[0]


SMALLEST = {min((name for name in NAMES if family(name) == each), key=parameters) for each in map(family, NAMES)}
TABLE = [name if parameters(name) <= QUICK or name in SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]

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
"""What people choose by hand: the last map before pooling; for a transformer that reads one token, what goes into the last
attention."""


def side_of(name: str) -> int:
    """A picture's side: small, with a map of more than one cell at the end."""
    if name.startswith("vit"):
        return 4 * int(name.rsplit("_", 1)[1])
    return {"maxvit": 224, "inception": 128, "alexnet": 96, "vgg": 96}.get(family(name), 64)


def built(name: str) -> nn.Module:
    """The architecture with random weights, statistics that fit them, and no head of zeros."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options = {"image_size": side_of(name)}
    module: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES, **options)
    for part in module.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
    settle(module.eval(), batch(name))
    return module


def settle(module: nn.Module, pictures: Tensor) -> None:
    """Gives each batch normalisation the statistics of what reaches it, so that activations neither vanish nor explode."""

    def learn(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-3

    handles = [part.register_forward_pre_hook(learn) for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        module(pictures)
    for handle in handles:
        handle.remove()


def batch(name: str) -> Tensor:
    """Two pictures of the architecture's side."""
    return synthetic_picture((side_of(name), side_of(name)), seed=5)


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
    return captured.logits, activation, gradients.expand_as(activation), cam.gradcam_plus_plus(activation, gradients)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to a share of the largest value expected, which is not 0."""
    scale = expected.abs().max()
    return found.shape == expected.shape and bool(scale > 0) and bool((found - expected).abs().max() <= TOLERANCE * scale)


def in_order(values: Tensor, channels: int) -> Tensor:
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
    assert close(activation, in_order(output, activation.shape[1]))
    assert close(gradients, in_order(slope, activation.shape[1]))
    assert activation.shape[2] > 1
    for row in range(2):
        expected = oracle.gradcam_plus_plus(activation[row].numpy(), gradients[row].numpy(), rectify_sum=True)
        np.testing.assert_allclose(maps[row].numpy(), expected, rtol=0, atol=TOLERANCE * expected.max())


ARCHIVED = {
    "alexnet": "script",
    "convnext_tiny": "trace",
    "densenet121": "trace",
    "efficientnet_b0": "script",
    "googlenet": "trace",
    "mnasnet0_5": "script",
    "mobilenet_v2": "script",
    "mobilenet_v3_large": "trace",
    "mobilenet_v3_small": "script",
    "regnet_x_400mf": "script",
    "regnet_y_400mf": "trace",
    "resnet18": "script",
    "shufflenet_v2_x0_5": "script",
    "squeezenet1_1": "script",
    "swin_t": "trace",
    "vit_b_32": "script",
}
"""One or two of each family whose size fits, and how they become TorchScript."""


@pytest.mark.parametrize("name", ARCHIVED)
def test_archives_of_other_kinds(name: str) -> None:
    """TorchScript and exported programs, saved and loaded: the same default layer, and maps equal to the eager model's."""
    model, pictures = built(name), batch(name)
    targets = top_classes(model, pictures)
    eager = opened(name, model)
    expected = explained(eager, pictures, targets)
    for kind in (ARCHIVED[name], "exported"):
        made = opened(name, nets.stored(model, kind, pictures))
        assert (made.kind, made.layers) == ("exported" if kind == "exported" else "torchscript", eager.layers)
        assert made.closed_form == eager.closed_form
        for found, value in zip(explained(made, pictures, targets), expected, strict=True):
            assert close(found, value)
