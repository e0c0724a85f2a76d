"""Prepacked convolutions: the same outputs, gradients where they are wanted, and only the convolutions that allow it."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from tests import nets
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from camserve.capture import open_backend, synthetic_picture
from camserve.capture.prepack import Prepacked, prepack
from camserve.config import Config
from camserve.explainer import Explainer, Want

CPU = torch.device("cpu")
PICTURES = synthetic_picture((32, 32), 4)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def close(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal but for rounding."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


CONVOLUTIONS = {
    "3 x 3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "bias": False},
    "1 x 1": {"kernel_size": 1},
    "1 x 1, strided": {"kernel_size": 1, "stride": 2, "bias": False},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 8},
    "grouped": {"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": (2, 1)},
    "oblong": {"kernel_size": (1, 7), "padding": (0, 3), "stride": (2, 1)},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("keys", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_the_convolution_is_the_same(keys: dict[str, object], channels_last: bool) -> None:
    """For the shape that it was prepared for, and for others: a lone picture, a larger or smaller batch or picture."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, **keys).eval().requires_grad_(requires_grad=False)  # type: ignore[arg-type]
    plain = copy.deepcopy(conv)
    if channels_last:
        conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    conv._conv_forward = Prepacked(conv, (4, 8, 20, 20))  # type: ignore[assignment, arg-type]
    for shape in ((4, 8, 20, 20), (1, 8, 20, 20), (7, 8, 20, 20), (2, 8, 33, 41), (1, 8, 9, 12), (8, 20, 20)):
        given = torch.randn(shape)
        assert close(conv(given), plain(given)), shape


def packed(model: nn.Module) -> set[str]:
    """The names of the modules that are."""
    return {name for name, module in model.named_modules() if "_conv_forward" in vars(module)}


class Same(nn.Conv2d):
    """A convolution with an idea of its own, as other libraries have."""

    def forward(self, given: Tensor) -> Tensor:
        """Twice the convolution's output."""
        return 2 * super().forward(given)


class Odd(nn.Module):
    """One ordinary convolution among those that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.Conv2d(3, 4, 3)
        self.own = Same(4, 4, 3)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.named = nn.Conv2d(4, 4, 3, padding="same")
        self.computed = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.unused = nn.Conv2d(4, 4, 3)
        self.finer = nn.Conv2d(4, 4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 4]`."""
        x = self.computed(self.named(self.mirrored(self.own(self.usual(x)))))
        return self.finer(x.double()).float().mean((2, 3))


def test_only_ordinary_convolutions_are_prepacked_and_all_is_taken_back() -> None:
    """Subclasses, other paddings, computed weights, other types and modules that do not run are left alone."""
    torch.manual_seed(0)
    model = Odd().eval().requires_grad_(requires_grad=False)
    expected = model(PICTURES)
    undo = prepack(model, PICTURES)
    assert undo is not None
    assert packed(model) == {"usual"}
    assert close(model(PICTURES), expected)
    undo()
    assert packed(model) == set()
    assert torch.equal(model(PICTURES), expected)


def test_nothing_is_done_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oneDNN, or without the operator, or where it refuses."""
    model = nets.net("pooled")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert prepack(model, PICTURES) is None
    monkeypatch.undo()

    def refuses(*_: object) -> Tensor:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(Prepacked, "_arranged", refuses)
    assert prepack(model, PICTURES) is None
    assert packed(model) == set()


def test_gradients_flow_and_other_weights_count() -> None:
    """Where a gradient is wanted, or the weights are no longer those that were arranged, torch's own convolution runs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).requires_grad_(requires_grad=False)
    plain = copy.deepcopy(conv)
    conv._conv_forward = Prepacked(conv, tuple(PICTURES.shape))  # type: ignore[assignment, arg-type]
    one, other = (PICTURES.clone().requires_grad_() for _ in range(2))
    conv(one).square().sum().backward()
    plain(other).square().sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)
    with torch.no_grad():
        assert close(conv(one), plain(one))
        conv.weight.mul_(3)
        plain.weight.mul_(3)
        assert close(conv(PICTURES), plain(PICTURES))
        conv.bias = plain.bias = nn.Parameter(torch.ones(4))
        assert close(conv(PICTURES), plain(PICTURES))


@pytest.mark.parametrize("layers", [("layer4",), ("layer2", "layer4")], ids=["closed form", "autograd"])
def test_a_tuned_model_explains_as_the_model_does(monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...]) -> None:
    """Scores and maps, with a head of convolutions behind the layer too; alone and in a batch."""
    monkeypatch.setattr("camserve.capture.backend._timed", _quicker_each_time())
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    pictures = synthetic_picture((64, 64), 3)
    plain = open_backend(copy.deepcopy(model), Config(layers=layers, channels_last=False), (64, 64), CPU)
    tuned = open_backend(model, Config(layers=layers), (64, 64), CPU, tune=True)
    assert tuned.prepacked
    assert len(packed(model)) == 20
    for count in (3, 1):
        wants = [Want(layer, "gradcam++", (3, 5)) for layer in layers for _ in range(count)]
        given = list(pictures[:count]) * len(layers)
        found, expected = (Explainer(backend, CPU).explain(given, wants) for backend in (tuned, plain))
        for one, other in zip(found, expected, strict=True):
            assert close(one.logits, other.logits)  # type: ignore[union-attr]
            for first, second in zip(one.maps, other.maps, strict=True):  # type: ignore[union-attr]
                assert abs(first.heatmap - second.heatmap).max() < 1e-3
                assert first.target == second.target


@pytest.mark.parametrize(
    "keys", [{"channels_last": False}, {"precision": "bfloat16"}], ids=["contiguous as asked", "half precision"]
)
def test_what_was_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch, keys: dict[str, object]) -> None:
    """A memory format that is given, or another precision: nothing is prepacked."""
    monkeypatch.setattr("camserve.capture.backend._timed", _quicker_each_time())
    model = nets.net("pooled")
    made = open_backend(model, Config(**keys), (32, 32), CPU, tune=True)  # type: ignore[arg-type]
    assert not made.prepacked
    assert packed(model) == set()


def _quicker_each_time() -> object:
    """Stands for the clock: each format takes half as long as the one before."""
    seconds = [1.0]

    def timed(model: nn.Module, pictures: Tensor, _budget: float) -> tuple[Tensor, float]:
        seconds[0] /= 2
        with torch.no_grad():
            return model(pictures), seconds[0]

    return timed
