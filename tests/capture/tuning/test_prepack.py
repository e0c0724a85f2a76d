"""Prepacked convolutions: the same outputs, gradients where they are wanted, and only the convolutions that allow it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.comparison.closeness import assert_close, exact, unscaled
from tests.support.models import architectures, nets
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from camserve.capture import open_backend, synthesize_pictures
from camserve.capture.tuning.prepack import PrepackedConv, prepack
from camserve.core.config import Config
from camserve.explain.explainer import Explainer
from camserve.explain.ranking import Task

CPU = torch.device("cpu")
PICTURES = synthesize_pictures((32, 32), 4)

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"),
]


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
    """For the shape that it was prepared for, and for others: a single picture, a larger or smaller batch or picture."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, **keys).eval().requires_grad_(requires_grad=False)  # type: ignore[arg-type]
    plain = copy.deepcopy(conv)
    if channels_last:
        conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    conv._conv_forward = PrepackedConv(conv, (4, 8, 20, 20))  # type: ignore[assignment]
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


class Operators(TorchDispatchMode):
    """Keeps the names of the operators that ran while it is open, and the weights of the prepacked convolutions among them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.weights: list[int] = []

    def __torch_dispatch__(self, operator: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
        self.names.append(operator.name().partition(".")[0])
        if self.names[-1] == "mkldnn::_convolution_pointwise":
            self.weights.append(id(given[1]))
        return operator(*given, **(named or {}))


def test_weights_that_torch_reordered_are_what_runs() -> None:
    """One operator for each convolution; a single picture has its own order of weights for convolutions of one cell."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)).eval().requires_grad_(requires_grad=False)
    assert prepack(model, PICTURES)
    wide, narrow = (vars(module)["_conv_forward"] for module in model)
    assert wide.weight_for(1) is wide.weight_for(4)
    assert narrow.weight_for(1) is not narrow.weight_for(4)
    for count in (1, 4):
        with Operators() as ran:
            model(PICTURES[:count])
        assert [name for name in ran.names if "conv" in name] == ["mkldnn::_convolution_pointwise"] * 2
        assert ran.weights == [id(wide.weight_for(count)), id(narrow.weight_for(count))]


def test_copies_run_as_torch_has_it(tmp_path: Path) -> None:
    """A module that is prepacked can be copied, pickled and saved; only the original stays prepacked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).eval().requires_grad_(requires_grad=False)
    expected = model(PICTURES)
    assert prepack(model, PICTURES)
    torch.save(model, tmp_path / "whole.pt")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert torch.equal(other(PICTURES), expected)
        with torch.no_grad():
            other.get_parameter("0.weight").zero_()
            other.get_parameter("0.bias").zero_()
        assert torch.equal(other[0](PICTURES), torch.zeros(4, 4, 30, 30))
    assert close(model(PICTURES), expected)
    assert packed(model) == {"0", "1"}


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

    monkeypatch.setattr(PrepackedConv, "_reorder", refuses)
    assert prepack(model, PICTURES) is None
    assert packed(model) == set()


def test_gradients_flow_and_other_weights_count() -> None:
    """Where a gradient is wanted, or the weights are no longer those that were reordered, torch's own convolution runs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).requires_grad_(requires_grad=False)
    plain = copy.deepcopy(conv)
    conv._conv_forward = PrepackedConv(conv, tuple(PICTURES.shape))  # type: ignore[assignment]
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
    monkeypatch.setattr("camserve.capture.tuning.memory_format.PREPACKED_GAIN", 1000)
    torch.manual_seed(0)
    model = architectures.SHALLOW["shallow_resnet"]().eval()
    pictures = synthesize_pictures((64, 64), 3)
    plain = open_backend(copy.deepcopy(model), Config(layers=layers, channels_last=False), (64, 64), CPU)
    errors = {layer: 2 * exact(model, layer, pictures[0], 3).map_error for layer in layers}
    tuned = open_backend(model, Config(layers=layers), (64, 64), CPU, tune=True)
    assert tuned.memory_format == "prepacked"
    assert len(packed(model)) == 12
    for count in (3, 1):
        wants = [Task(layer, "gradcam++", (3, 5)) for layer in layers for _ in range(count)]
        given = list(pictures[:count]) * len(layers)
        found, expected = (Explainer(backend, CPU).explain(given, wants) for backend in (tuned, plain))
        for want, one, other in zip(wants, found, expected, strict=True):
            assert close(one.logits, other.logits)  # type: ignore[union-attr]
            for first, second in zip(one.explanations, other.explanations, strict=True):  # type: ignore[union-attr]
                map_, wanted = (unscaled(each.heatmap, each.range) for each in (first, second))
                assert_close(map_, wanted, errors[want.layers[0]])
                assert first.target == second.target


@pytest.mark.parametrize("change", ["other memory", "trained", "autocast"])
def test_what_is_no_longer_as_it_was_runs_as_torch_has_it(change: str) -> None:
    """Weights that were given other memory, that want a gradient, or that are cast for each pass."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).requires_grad_(requires_grad=False)
    conv._conv_forward = PrepackedConv(conv, tuple(PICTURES.shape))  # type: ignore[assignment]
    if change == "other memory":
        conv.weight.data = torch.ones_like(conv.weight)
    elif change == "trained":
        conv.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        found = conv(PICTURES)
        del conv._conv_forward
        assert torch.equal(found, conv(PICTURES))
    assert found.requires_grad is (change == "trained")
    assert found.dtype == (torch.bfloat16 if change == "autocast" else torch.float32)
