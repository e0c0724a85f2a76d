"""On a CUDA device: the same maps, folded or not, in every precision, and no more memory than a prediction takes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from camserve.capture import open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.ranking import Task

pytestmark = pytest.mark.gpu
SIZE = (96, 96)
CPU = torch.device("cpu")
TOLERANCES = {"float32": 2e-2, "float16": 0.1, "bfloat16": 0.25}
"""Of a heatmap's values; products in TF32 have ten bits."""


@pytest.fixture
def net() -> nn.Module:
    """A ResNet-18 of random weights, whose norms do something."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    return model


def explained(model: nn.Module, device: torch.device, layer: str, count: int = 4, **settings: object) -> NDArray[np.float32]:
    """The heatmaps of two targets for each picture, `[2 * count, h, w]`."""
    config = Config.from_mapping({"layers": [layer], **settings})
    backend = open_backend(copy.deepcopy(model).to(device), config, SIZE, device, tune=device.type == "cuda")
    seen = Explainer(backend, device).explain(list(synthesize_pictures(SIZE, count)), [Task(layer, "gradcam++", (1, 22))] * count)
    assert all(isinstance(each, Prediction) for each in seen)
    return np.stack([found.heatmap for each in seen if isinstance(each, Prediction) for found in each.explanations])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_maps_are_those_of_the_cpu(net: nn.Module, layer: str, precision: str) -> None:
    """In closed form (layer4) and by autograd (layer3)."""
    expected = explained(net, CPU, layer)
    found = explained(net, torch.device("cuda"), layer, precision=precision)

    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[precision])


def test_the_closed_form_is_found_where_tensorfloat_is_allowed(net: nn.Module) -> None:
    """As TorchServe allows it."""
    device = torch.device("cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert open_backend(net.to(device), Config(), SIZE, device, tune=True).closed_form == ("layer4",)
    finally:
        torch.set_float32_matmul_precision(before)


def test_nothing_stays_on_the_device(net: nn.Module) -> None:
    """A batch's tensors are let go of, however many batches there were."""
    device = torch.device("cuda")
    backend = open_backend(net.to(device), Config(layers=("layer3",)), SIZE, device, tune=True)
    explainer, pictures = Explainer(backend, device), list(synthesize_pictures(SIZE, 8))
    wants = [Task("layer3", "gradcam++", (1,))] * 8
    explainer.explain(pictures, wants)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()

    for _ in range(20):
        explainer.explain(pictures, wants)

    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_explaining_takes_little_more_memory_than_predicting(net: nn.Module) -> None:
    """Only the head behind the layer has a graph."""
    device = torch.device("cuda")
    backend = open_backend(net.to(device), Config(layers=("layer4",)), (224, 224), device, tune=True)
    explainer, pictures = Explainer(backend, device), list(synthesize_pictures((224, 224), 32))
    peaks = []
    for wants in ([None] * 32, [Task("layer4", "gradcam++", (1,))] * 32):
        explainer.explain(pictures, wants)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        explainer.explain(pictures, wants)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())

    assert peaks[1] <= 1.15 * peaks[0]
