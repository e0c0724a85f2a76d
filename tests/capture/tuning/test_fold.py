"""Batch normalisation folded into convolutions: same scores and activations, and nothing folded where they would differ."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.support import build
from tests.support.models import nets
from tests.support.processes.worker import load_monitored
from torch import Tensor, nn

from camserve.capture import open_backend, synthesize_pictures
from camserve.capture.tuning.fold import fold_norms
from camserve.core.config import Config

pytestmark = pytest.mark.numeric

SIZE = (32, 32)
PICTURES = synthesize_pictures(SIZE, 4)


def settled(model: nn.Module) -> nn.Module:
    """Frozen, with statistics and weights of norms that matter."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight, module.bias):
                if values is not None:
                    values.data = torch.randn(values.shape, generator=generator)
            module.running_var = 0.2 + torch.rand(module.num_features, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


class Net(nn.Module):
    """Two convolutions with norms; `variant` says what is odd about the second."""

    def __init__(self, variant: str = "") -> None:
        super().__init__()
        self.variant = variant
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(6, 6, 3, 1, 1, groups=3)
        self.norm = nn.BatchNorm2d(6, affine=variant != "plain")
        self.tied = nn.Conv2d(6, 6, 3, 1, 1, groups=3)
        if variant == "tied":
            self.tied.weight = self.conv.weight
        if variant == "watched":
            self.conv.register_forward_hook(lambda _own, _given, output: output * 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.stem(x)
        y = self.conv(x)
        if self.variant == "between":
            y.mul_(2)
        if self.variant == "unseen":
            y.clamp_(-1e6, 1e6)
        z = self.norm(y)
        if self.variant == "twice":
            z = self.norm(self.conv(z))
        if self.variant == "used":
            z = z + y
        if self.variant == "tied":
            z = z + self.tied(x)
        return self.head(z.relu().mean((2, 3)))


def folded(variant: str, layers: tuple[str, ...] = ("stem",)) -> tuple[int, nn.Module, nn.Module]:
    """How many were folded, the model as it was, and as it is."""
    model = settled(Net(variant))
    before = copy.deepcopy(model)
    return fold_norms(model, PICTURES, layers), before, model


@pytest.mark.parametrize("variant", ["", "plain", "between", "unseen", "twice", "used", "tied", "watched"])
def test_scores_stay_what_they_were(variant: str) -> None:
    """A second use of a convolution or of its output, its weights' or other hands in between keep it as it is, also hands that
    change nothing in the trial."""
    count, before, model = folded(variant)
    pictures = synthesize_pictures((48, 40), 3, seed=5)

    torch.testing.assert_close(model(pictures).softmax(1), before(pictures).softmax(1), rtol=0, atol=1e-6)
    assert count == {"": 2, "plain": 2, "used": 0}.get(variant, 1)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert norms == 2 - count
    if not count:
        for old, new in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(old, new)


@pytest.mark.parametrize(("layer", "count"), [("conv", 1), ("norm", 2), ("stem.0", 1), ("stem.1", 2), ("stem", 2)])
def test_an_asked_layer_keeps_its_output(layer: str, count: int) -> None:
    """The output of a convolution that may be explained must not become the norm's."""
    found, before, model = folded("", (layer,))
    outputs = []
    for each in (before, model):
        each.get_submodule(layer).register_forward_hook(lambda _own, _given, output: outputs.append(output.clone()))
        each(PICTURES)

    assert found == count
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_norms_in_training_are_left_alone() -> None:
    """Their statistics are the batch's."""
    model = settled(Net())
    model.get_submodule("norm").train()
    assert fold_norms(model, PICTURES, ()) == 1
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_a_model_without_a_fold_is_not_touched_unless_asked() -> None:
    """Packaging saves the weights that it opened."""
    model = copy.deepcopy(nets.net("pooled"))  # others share it
    weights = copy.deepcopy(model.state_dict())
    open_backend(model, Config(channels_last=False), SIZE, torch.device("cpu"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    open_backend(model, Config(channels_last=False), SIZE, torch.device("cpu"), tune=True)
    assert "stem.1.weight" not in model.state_dict()


def test_the_gradients_are_the_same() -> None:
    """Of a layer whose head holds what was folded."""
    model = settled(Net())
    found = []
    for fold in (False, True):
        config = Config(layers=("stem",), channels_last=False)
        made = open_backend(copy.deepcopy(model), config, SIZE, torch.device("cpu"), tune=fold)
        captured = made.capture.forward(PICTURES, ["stem"])
        found.append(captured.gradients("stem", torch.arange(4), torch.arange(4)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert found[0].abs().max() > 0


def test_the_handler_folds(tmp_path: Path) -> None:
    """What is served runs folded."""
    source = build.MODEL.replace("stride=8), nn.ReLU", "stride=8), nn.BatchNorm2d(6), nn.ReLU")
    directory = build.archive(tmp_path / "normed")
    (directory / "model.py").write_text(source.replace("CLASSES", "3").replace("FAULT", "pass"))
    state = build.weights()
    state |= {f"features.1.{name}": torch.rand(6) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    torch.save(state, directory / "weights.pth")

    model = build.module_of(load_monitored(directory))

    assert isinstance(model.get_submodule("features.1"), nn.Identity)
