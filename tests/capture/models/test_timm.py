"""Classifiers of timm: layers by rule, gradients and maps as autograd and the formula have them, and one through an archive.

timm's own small test models stand for its families; nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.support.comparison import oracle
from tests.support.models import architectures, nets
from tests.support.processes.fork_server import ForkServer
from torch import nn

from camserve.capture import open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.explain import methods
from camserve.tools.archive.archive import open_archive
from camserve.tools.commands import package
from camserve.tools.console import Progress
from camserve.tools.packaging import packager

pytestmark = pytest.mark.numeric

SIZE = (160, 160)
TOLERANCE = 1e-5

LAYERS = {
    "test_byobnet": "stages",
    "test_coatnet": "norm",
    "test_convnext": "stages",
    "test_efficientnet": "bn2",
    "test_mambaout": "stages",
    "test_maxvit": "norm",
    "test_nfnet": "final_act",
    "test_resnet": "layer4",
    "test_vit": "blocks.5.norm1",
    "test_vit2": "blocks",
}
"""What the rule takes: the last map before pooling; where a class token is read, the norm before the last attention."""


def built(name: str) -> nn.Module:
    """The architecture with random weights; no head of zeros, and no residual branch scaled to nothing."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=architectures.CLASSES)
    for part in model.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(gamma := getattr(part, "gamma", None), nn.Parameter):
            nn.init.ones_(gamma)
    architectures.settle(model.eval(), synthesize_pictures(SIZE))
    return model


def as_grid(values: torch.Tensor, channels: int) -> torch.Tensor:
    """A layer's output as `[N, C, h, w]`."""
    if values.ndim == 3:
        side = int(values.shape[1] ** 0.5)
        values = values[:, -side * side :].reshape(len(values), side, side, -1)
    return values if values.shape[1] == channels else values.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_rule_and_its_map(name: str) -> None:
    """Activation and gradients are those of autograd through the whole model; the map is equation 19's, in float64."""
    model, pictures = built(name), synthesize_pictures(SIZE, seed=5)
    made = open_backend(model, Config(channels_last=False), SIZE, torch.device("cpu"))
    (layer,) = made.layers
    assert layer == LAYERS[name]
    captured = made.capture.forward(pictures, [layer])
    targets, rows = captured.logits.argmax(1), torch.arange(2)
    activation, gradients = captured.activation(layer), captured.gradients(layer, rows, targets)
    scores, output, slope = nets.by_autograd(model, layer, pictures, targets)
    for found, exact in (
        (captured.logits, scores),
        (activation, as_grid(output, activation.shape[1])),
        (gradients.expand_as(activation), as_grid(slope, activation.shape[1])),
    ):
        assert exact.abs().max() > 0
        torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE * float(exact.abs().max()))
    maps = methods.gradcam_plus_plus(activation, gradients)
    for row in range(2):
        plain = oracle.gradcam_plus_plus(activation[row], as_grid(slope, activation.shape[1])[row], rectify_sum=True)
        np.testing.assert_allclose(maps[row].numpy(), plain, rtol=0, atol=TOLERANCE * plain.max())


@pytest.mark.parametrize(
    ("size", "options", "layer", "cells"),
    [
        ((384, 384), {"patch_size": 14, "class_token": False, "global_pool": "avg"}, "blocks", (27, 27)),
        ((230, 230), {"patch_size": 16}, "blocks.1.norm1", (14, 14)),
        ((100, 60), {"patch_size": 16}, "blocks.1.norm1", (6, 3)),
        ((100, 60), {"patch_size": 16, "class_token": False, "global_pool": "avg"}, "blocks", (6, 3)),
        ((224, 224), {"patch_size": 16, "reg_tokens": 4, "qk_norm": True}, "blocks.1.norm1", (14, 14)),
        ((128, 128), {"patch_size": 16, "class_token": False, "global_pool": "avg", "qk_norm": True}, "blocks", (8, 8)),
    ],
)
def test_patches_that_do_not_divide_the_picture(
    size: tuple[int, int], options: dict[str, Any], layer: str, cells: tuple[int, int]
) -> None:
    """The tokens lie as the patch embedding's map, with the class token and registers before them; parts of heads are no maps."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": architectures.CLASSES}
    model = timm.models.VisionTransformer(img_size=size, **sizes, **options).eval()
    pictures = synthesize_pictures(size, seed=5)
    made = open_backend(model, Config(channels_last=False), size, torch.device("cpu"))
    assert made.layers == (layer,)
    captured = made.capture.forward(pictures, [layer])
    _, output, _ = nets.by_autograd(model, layer, pictures, captured.logits.argmax(1))
    expected = output[:, -cells[0] * cells[1] :].reshape(2, *cells, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(captured.activation(layer), expected)
    assert not [info.name for info in made.maps if ".attn." in info.name and len(info.shape) == 4]


@pytest.mark.usefixtures("forked")
def test_an_archive_carries_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer) -> None:
    """`--model-file` with a file that imports it: bundled with its licence, and explained where nothing else is installed."""
    (tmp_path / "net.py").write_text(
        "import timm\n\nclass Net:\n    def __new__(cls):\n"
        f"        return timm.create_model('test_vit', pretrained=False, num_classes={architectures.CLASSES})\n"
    )
    torch.save(built("test_vit").state_dict(), tmp_path / "net.pth")
    monkeypatch.chdir(tmp_path)
    flags = ["--model-file", "net.py", "--weights", "net.pth", "--resize", "160", "--crop", "160", "--export-path", "."]
    archive = packager.package(package.parse(flags), Progress())
    answer = json.loads(fork_server.result["body"])
    assert (answer["layer"], answer["method"]) == (LAYERS["test_vit"], "hirescam")  # it has a class token
    assert np.array(answer["explanations"][0]["heatmap"]).shape == (10, 10)
    with open_archive(archive) as opened:
        assert (opened.directory / "timm" / "__init__.py").is_file()
        assert (opened.directory / "licenses" / f"timm-{timm.__version__}" / "LICENSE").is_file()
