"""The closed form: used where the head is global average pooling and one linear layer, equal to autograd, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tests.support.models import nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import find_cam_weights, open_backend, open_model, synthesize_pictures
from camserve.capture.tuning.fold import fold_norms
from camserve.capture.tuning.memory_format import run_trial
from camserve.core.config import Config

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
PICTURES = synthesize_pictures((nets.SIDE, nets.SIDE))


class Headed(nn.Module):
    """Convolutions to 6 channels, and a head that is a function of the map and three parameters."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)
        self.other = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(6)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return HEADS[self.head][1](self, self.trunk(x))


def mean(x: Tensor) -> Tensor:
    """Global average pooling."""
    return x.mean((2, 3))


HEADS = {
    "mean, linear": (True, lambda m, x: m.fc(mean(x))),
    "without bias": (True, lambda m, x: functional.linear(mean(x), m.fc.weight)),
    "pooling module": (True, lambda m, x: m.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))),
    "linear at each cell, then the mean": (True, lambda m, x: m.fc(x.permute(0, 2, 3, 1)).mean((1, 2))),
    "in-place operation that changes nothing": (True, lambda m, x: m.fc(mean(x.mul_(1)))),
    "ReLU before the mean": (False, lambda m, x: m.fc(mean(x.relu()))),
    "ReLU behind the mean": (False, lambda m, x: m.fc(mean(x).relu())),
    "sigmoid-weighted": (False, lambda m, x: m.fc(mean(x * torch.sigmoid(x)))),
    "norm": (False, lambda m, x: m.fc(m.norm(mean(x)))),
    "two linear layers": (False, lambda m, x: m.other(m.fc(mean(x)))),
    "ReLU of the scores": (False, lambda m, x: m.fc(mean(x)).relu()),
    "log-probabilities": (False, lambda m, x: functional.log_softmax(m.fc(mean(x)), 1)),
    "largest value": (False, lambda m, x: m.fc(x.amax((2, 3)))),
    "sum": (False, lambda m, x: m.fc(x.sum((2, 3)))),
    "mean of the upper half": (False, lambda m, x: m.fc(mean(x[:, :, :4]))),
    "a clip that is wide": (False, lambda m, x: m.fc(mean(x).clamp(-6, 6))),
}


@pytest.mark.parametrize("head", HEADS)
def test_recognised_by_trial(head: str) -> None:
    """A linear function of the mean is recognised however it is written, and nothing else is."""
    torch.manual_seed(0)
    model = Headed(head).eval()
    classifier = open_model(model, PICTURES)
    found = classifier.survey(PICTURES)
    weight = find_cam_weights(classifier, found.site("trunk"), PICTURES, found.outputs)
    assert (weight is not None) == HEADS[head][0]
    if weight is not None:
        assert torch.equal(weight, model.fc.weight)


def test_a_linear_layer_of_one_by_one_convolution() -> None:
    """A fully convolutional head has a closed form at the layer below it."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 5, 1))
    classifier = open_model(model, PICTURES)
    weight = find_cam_weights(classifier, classifier.survey(PICTURES).site("1"), PICTURES, 5)
    assert weight is not None
    assert torch.equal(weight, model.get_parameter("3.weight")[:, :, 0, 0])


def test_the_right_one_of_several_matrices_is_taken() -> None:
    """A second parameter of the same shape, used or not, does not mislead the trial."""
    model = Headed("mean, linear")
    model.spare = nn.Parameter(torch.randn(5, 6))
    classifier = open_model(model, PICTURES)
    weight = find_cam_weights(classifier, classifier.survey(PICTURES).site("trunk"), PICTURES, 5)
    assert weight is not None
    assert torch.equal(weight, model.fc.weight)


def test_a_head_of_zeros_is_not_recognised() -> None:
    """Where nothing changes the scores the trial says nothing."""
    model = Headed("mean, linear")
    nn.init.zeros_(model.fc.weight)
    classifier = open_model(model, PICTURES)
    assert find_cam_weights(classifier, classifier.survey(PICTURES).site("trunk"), PICTURES, 5) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recognised_in_half_precision(dtype: torch.dtype) -> None:
    """Rounding is not taken for a bend, nor a bend for rounding."""
    for head in ("mean, linear", "without bias", "ReLU behind the mean", "norm", "two linear layers", "sum"):
        torch.manual_seed(0)
        classifier = open_model(Headed(head).to(dtype), PICTURES)
        found = classifier.survey(PICTURES)
        assert (find_cam_weights(classifier, found.site("trunk"), PICTURES, 5) is not None) == HEADS[head][0]


ARCHITECTURES = ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_x_400mf", "googlenet")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_autograd(name: str) -> None:
    """Activation and gradients are those of a capture without the closed form, within 1e-5."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **options)
    with torch.no_grad():  # statistics of random weights as of trained ones, or nothing is left of the activations
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        model(synthesize_pictures((64, 64), 4))
    made = open_backend(model.eval(), Config(channels_last=False), (64, 64), CPU)
    assert made.closed_form == made.layers
    classifier = open_model(model, synthesize_pictures((64, 64)))
    layer = made.layers[0]
    plain = classifier.capture({layer: classifier.survey(synthesize_pictures((64, 64))).site(layer)})
    rows, targets = torch.arange(2), torch.tensor([7, 900])
    one = made.capture.forward(synthesize_pictures((64, 64), seed=3), [layer])
    other = plain.forward(synthesize_pictures((64, 64), seed=3), [layer])
    expected = other.gradients(layer, rows, targets)
    assert one.gradients(layer, rows, targets).shape[2:] == (1, 1)
    assert torch.allclose(
        one.activation(layer), other.activation(layer), rtol=0, atol=1e-5 * float(other.activation(layer).max())
    )
    error = (one.gradients(layer, rows, targets).expand_as(expected) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


def test_no_graph_is_made() -> None:
    """Where all asked layers have a closed form the pass is a plain prediction."""
    made = open_backend(nets.net("pooled"), Config(layers=("features",), channels_last=False), (nets.SIDE, nets.SIDE), CPU)
    captured = made.capture.forward(nets.pictures(2), ["features"])
    assert not captured.scores.requires_grad  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["eager", "script", "exported"])
def test_pictures_of_another_size_take_autograd(kind: str) -> None:
    """The trial holds for the size that it was made with; others get the gradients of autograd, cell by cell."""
    model = nets.Rooted(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nets_mean(), nn.Linear(6, 5)).eval()
    if kind == "exported":
        sides = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16), 3: torch.export.Dim("w", min=16)}
        held: object = torch.export.export(model, (nets.pictures(3, side=48),), dynamic_shapes=(sides,))
    else:
        held = nets.stored(model, kind, nets.pictures(3))
    made = open_backend(held, Config(layers=("body.1",), channels_last=False), (nets.SIDE, nets.SIDE), CPU)
    assert made.closed_form == ("body.1",)
    batch, targets = nets.pictures(2, side=40), torch.tensor([1, 4])
    _, _, gradient = nets.by_autograd(model, "body.1", batch, targets)
    found = made.capture.forward(batch, ["body.1"]).gradients("body.1", torch.arange(2), targets)
    assert found.shape == (2, 6, 10, 10)
    assert torch.allclose(found, gradient, rtol=0, atol=1e-6)
    assert gradient[0, 0].unique().numel() > 1


def nets_mean() -> nn.Module:
    """Global average pooling as modules."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_trials_are_made_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe allows TensorFloat-32 on GPUs, whose ten bits would let every trial fail; afterwards it is allowed as before."""
    found = []

    class Seeing(Headed):
        def forward(self, x: Tensor) -> Tensor:
            found.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(x)

    model = Seeing("mean, linear").eval()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        classifier = open_model(model, PICTURES)
        site = classifier.survey(PICTURES).site("trunk")
        found.clear()
        assert find_cam_weights(classifier, site, PICTURES, 5) is not None
        assert set(found) == {("highest", False)}
        found.clear()
        fold_norms(model, PICTURES, ["trunk"])
        assert set(found) == {("highest", False)}
        found.clear()
        run_trial(model, PICTURES)
        assert found[:2] == [("highest", False)] * 2
        assert set(found[2:]) == {("high", True)}
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before)
