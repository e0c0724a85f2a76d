"""Quantized models: explained where a gradient is known, by what their weights of 8 bits stand for; else refused in true words."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.comparison.closeness import assert_close
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub, convert, get_default_qconfig, prepare, quantize_dynamic

from camserve.capture import Backend, open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain.explainer import Explainer
from camserve.explain.ranking import Task

SIDE = 48
CPU = torch.device("cpu")
CONFIG = Config(channels_last=False)
PICTURES = synthesize_pictures((SIDE, SIDE), 3, seed=9)

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]  # torch announces where quantization moves to


class Net(nn.Module):
    """A trunk, pooling, and one linear layer, or two; what is static is between the stubs."""

    def __init__(self, deep: bool = False, float_head: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)) if deep else nn.Linear(32, 6)
        self.float_head = float_head
        for parameter in self.parameters():
            gain = (2 / max(1, parameter[0].numel())) ** 0.5 if parameter.ndim > 1 else 0.05
            parameter.data = gain * torch.randn(parameter.shape, generator=generator)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores `[N, 6]`."""
        maps = self.trunk(self.quant(pictures))
        if self.float_head:
            scores: Tensor = self.head(self.pool(self.dequant(maps)).flatten(1))
            return scores
        ended: Tensor = self.dequant(self.head(self.pool(maps).flatten(1)))
        return ended


def dynamic(deep: bool) -> nn.Module:
    """Its linear layers are quantized."""
    model: nn.Module = quantize_dynamic(Net(deep).eval(), {nn.Linear}, dtype=torch.qint8)
    return model


def static(deep: bool = False, float_head: bool = False) -> nn.Module:
    """All of it is quantized, or all but the head."""
    model: Any = Net(deep, float_head).eval()
    model.qconfig = get_default_qconfig("x86")
    if float_head:
        model.head.qconfig = None
    prepare(model, inplace=True)
    with torch.no_grad():
        for seed in range(4):
            model(synthesize_pictures((SIDE, SIDE), 8, seed=seed))
    converted: nn.Module = convert(model)
    return converted


def stored(model: nn.Module, form: str) -> Any:
    """The model as it is, or as TorchScript."""
    if form == "eager":
        return model
    return torch.jit.trace(model, PICTURES[:2]) if form == "traced" else torch.jit.script(model)


def exact_head(model: Any) -> nn.Module:
    """The layers behind pooling in float64, with the numbers that the quantized weights stand for."""
    head = copy.deepcopy(Net(isinstance(model.head, nn.Sequential)).head).double()
    for own, quantized in zip(
        [each for each in head.modules() if isinstance(each, nn.Linear)],
        [each for each in model.head.modules() if callable(getattr(each, "weight", None))],
        strict=True,
    ):
        own.weight.data = quantized.weight().dequantize().double()
        own.bias.data = quantized.bias().detach().double()
    return head


def assert_explained(made: Backend, layer: str, model: Any, target: int) -> None:
    """Each picture's map is the literal formula's, of the layer's activation and the exact head's gradient."""
    own = dict(model.named_modules())[layer]
    kept: list[Tensor] = []
    handle = own.register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        scores = torch.cat([model(picture[None]) for picture in PICTURES])
    handle.remove()
    activations = torch.cat([each.dequantize() if each.is_quantized else each for each in kept])
    leaf = activations.detach().double().requires_grad_()
    exact_head(model)(leaf.mean((2, 3)))[:, target].sum().backward()
    assert leaf.grad is not None
    found = Explainer(made, CPU).explain(list(PICTURES), [Task(layer, "gradcam++", (target,))] * len(PICTURES))
    for place, prediction in enumerate(found):
        assert not isinstance(prediction, Exception)
        assert torch.equal(prediction.logits, scores[place])  # the prediction stays the quantized model's own
        wanted = oracle.gradcam_plus_plus(leaf.detach()[place].numpy(), leaf.grad[place].numpy(), rectify_sum=True)
        (explanation,) = prediction.explanations
        assert explanation.range is not None
        low, high = explanation.range
        assert_close(np.asarray(explanation.heatmap) * (high - low) + low, wanted, 1e-5)
        assert wanted.max() > 0


@pytest.mark.parametrize("form", ["eager", "traced", "scripted"])
def test_one_quantized_linear_layer_has_the_closed_form(form: str) -> None:
    """Dynamic: the trunk is of floats, and the gradient is the row of what the weights of 8 bits stand for."""
    model = dynamic(deep=False)
    made = open_backend(stored(model, form), CONFIG, (SIDE, SIDE), CPU)
    assert made.closed_form == made.layers
    layered = open_backend(stored(model, form), Config(layers=("trunk.3",), channels_last=False), (SIDE, SIDE), CPU)
    assert_explained(layered, "trunk.3", model, 2)


def test_gradients_go_straight_through_several_quantized_layers() -> None:
    """Dynamic, of a module: by autograd, with the ReLU between them."""
    model = dynamic(deep=True)
    made = open_backend(model, Config(layers=("trunk.3",), channels_last=False), (SIDE, SIDE), CPU)
    assert made.closed_form == ()
    assert_explained(made, "trunk.3", model, 5)


@pytest.mark.parametrize("form", ["eager", "traced", "scripted"])
def test_all_of_a_static_model_may_be_quantized(form: str) -> None:
    """Its activation is what its 8 bits stand for, its gradient the row of the last layer."""
    model = static()
    made = open_backend(stored(model, form), CONFIG, (SIDE, SIDE), CPU)
    assert made.closed_form == made.layers
    assert_explained(open_backend(stored(model, form), Config(layers=("trunk.3",)), (SIDE, SIDE), CPU), "trunk.3", model, 1)


def test_a_head_of_floats_behind_a_quantized_trunk_is_differentiated() -> None:
    """From where the values are floats again."""
    model: Any = static(deep=True, float_head=True)
    made = open_backend(model, CONFIG, (SIDE, SIDE), CPU)
    assert made.layers == ("dequant",)
    found = Explainer(made, CPU).explain(list(PICTURES), [Task("dequant", "gradcam++", (1,))] * 3)
    assert all(not isinstance(each, Exception) and each.explanations[0].range for each in found)


@pytest.mark.parametrize(
    ("kind", "form"), [("dynamic", "traced"), ("dynamic", "scripted"), ("static", "eager"), ("static", "traced")]
)
def test_where_no_gradient_is_known_one_true_sentence_says_so(kind: str, form: str) -> None:
    """Two quantized layers behind pooling: not what torch.no_grad() or a missing state dict would be."""
    model = dynamic(deep=True) if kind == "dynamic" else static(deep=True)
    with pytest.raises(ConfigError, match=r"quantized layers behind it have none.* package the model as it was before") as caught:
        open_backend(stored(model, form), CONFIG, (SIDE, SIDE), CPU)
    assert "no_grad" not in str(caught.value)
    assert "state_dict" not in str(caught.value)


@pytest.mark.parametrize("form", ["eager", "traced"])
def test_a_picture_gets_what_it_would_have_got_alone(form: str) -> None:
    """Dynamic quantization rounds by the range of a batch, so each picture runs by itself."""
    explainer = Explainer(open_backend(stored(dynamic(deep=False), form), CONFIG, (SIDE, SIDE), CPU), CPU)
    together = explainer.explain(list(PICTURES), [None] * len(PICTURES))
    for picture, one in zip(PICTURES, together, strict=True):
        (alone,) = explainer.explain([picture], [None])
        assert not isinstance(one, Exception)
        assert not isinstance(alone, Exception)
        assert torch.equal(one.logits, alone.logits)
