"""From a loaded model to a capture: compiled models, memory format, layers that are refused, and what is no model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn
from torch._dynamo import lookup_backend

from camserve.capture import open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)


def test_what_a_backend_says_of_a_model() -> None:
    """Layers, outputs, the reason for the default, and where the head has a closed form."""
    made = open_backend(nets.net("pooled"), Config(channels_last=False), SIZE, CPU)
    assert (made.kind, made.layers, made.outputs, made.closed_form) == ("eager", ("features",), 5, ("features",))
    assert made.why == "the last of 7 layers with a map that the prediction depends on: 8 channels, 8x8 cells"
    assert [info.name for info in made.maps][-1] == "features"
    given = open_backend(nets.net("pooled"), Config(layers=("stem", "features"), channels_last=False), SIZE, CPU)
    assert (given.layers, given.why) == (("stem", "features"), "")
    assert set(given.capture.sites) == {"stem", "features"}


@pytest.mark.parametrize(
    ("compiler", "name"), [("eager", "deep"), ("eager", "twice"), ("aot_eager", "pooled"), ("aot_eager", "tokens")]
)
def test_a_compiled_model_is_explained_compiled(compiler: str, name: str) -> None:
    """Predictions and explanations run what the model's own compiler makes of it with its layers' outputs."""
    ran: list[str] = []

    def recorded(graph: Any, inputs: Any) -> Any:
        made = lookup_backend(compiler)(graph, inputs)

        def run(*given: Any) -> Any:
            ran.append("compiled")
            return made(*given)

        return run

    layer = nets.NETS[name][1][0]
    made = open_backend(torch.compile(nets.net(name), backend=recorded), Config(layers=(layer,)), SIZE, CPU)
    assert (made.compiled, made.runtime.name, made.runtime.layers) == (True, "compile", (layer,))
    plain = open_backend(nets.net(name), Config(layers=(layer,), channels_last=False), SIZE, CPU)
    for count in (1, 3):
        batch, rows = nets.pictures(count), torch.arange(count)
        wanted = plain.capture.forward(batch, [layer])
        ran.clear()
        assert torch.allclose(made.capture.forward(batch, ()).logits, wanted.logits, atol=1e-5)
        assert ran == ["compiled"]
        captured = made.capture.forward(batch, [layer])
        assert ran == ["compiled"] * 2
        assert torch.allclose(captured.activation(layer), wanted.activation(layer), atol=1e-5)
        assert torch.allclose(captured.gradients(layer, rows, rows), wanted.gradients(layer, rows, rows), atol=1e-6)


def test_a_model_whose_compiler_does_not_take_its_layers_is_explained_as_it_was() -> None:
    """Its predictions run compiled all the same."""
    ran: list[str] = []

    def only_predicts(graph: Any, _inputs: Any) -> Any:
        (outputs,) = next(iter(reversed(graph.graph.nodes))).args
        if len(outputs) > 1:
            raise ValueError("one output is all that I know")

        def run(*given: Any) -> Any:
            ran.append("compiled")
            return graph.forward(*given)

        return run

    made = open_backend(torch.compile(nets.net("deep"), backend=only_predicts), Config(layers=("norm",)), SIZE, CPU)
    assert (made.compiled, made.runtime.name) == (True, "torch")
    assert "one output is all that I know" in made.runtime.why
    ran.clear()
    plain = open_backend(nets.net("deep"), Config(layers=("norm",), channels_last=False), SIZE, CPU)
    batch = nets.pictures(2)
    assert torch.allclose(made.capture.forward(batch, ()).logits, plain.capture.forward(batch, ()).logits, atol=1e-6)
    assert ran == ["compiled"]
    assert torch.equal(made.capture.forward(batch, ["norm"]).logits, plain.capture.forward(batch, ["norm"]).logits)
    assert ran == ["compiled"]


def test_a_part_that_is_compiled_runs_as_it_was() -> None:
    """Nothing is compiled for the trials, nor for requests; the names of layers and weights stay as they are."""
    ran: list[str] = []

    def compiler(graph: Any, _inputs: object) -> Any:
        ran.append("compiled")
        return graph

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.compile(nets.net("deep"), backend=compiler)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    model = Wrapped().eval()
    keys = list(model.state_dict())
    made = open_backend(model, Config(channels_last=False), SIZE, CPU)
    plain = open_backend(nets.net("deep"), Config(channels_last=False), SIZE, CPU)
    assert made.layers == (f"model._orig_mod.{plain.layers[0]}",)
    batch = nets.pictures(2)
    found, wanted = (each.capture.forward(batch, each.layers).activation(each.layers[0]) for each in (made, plain))
    assert torch.equal(found, wanted)
    assert torch.equal(made.capture.forward(batch, ()).logits, plain.capture.forward(batch, ()).logits)
    assert not ran
    assert list(model.state_dict()) == keys


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_tried_in_float32(dtype: torch.dtype) -> None:
    """The model itself runs as it was given, and only for what it answers: once with the layer taken out, and to read its scores."""
    ran: list[torch.dtype] = []
    model = copy.deepcopy(nets.net("pooled")).to(dtype)
    model.register_forward_hook(lambda own, _inputs, _output: ran.append(own.fc.weight.dtype))
    made = open_backend(model, Config(channels_last=False), SIZE, CPU)
    plain = open_backend(nets.net("pooled"), Config(channels_last=False), SIZE, CPU)
    assert (made.layers, made.closed_form, made.why) == (plain.layers, plain.closed_form, plain.why)
    assert ran.count(dtype) < ran.count(torch.float32)
    captured = made.capture.forward(nets.pictures(2), made.layers)
    assert captured.activation(made.layers[0]).dtype == dtype


def test_a_model_of_half_precision_that_does_not_run_in_float32_is_tried_as_it_is() -> None:
    """Its own code converts values to the type that it was trained in."""

    class Converting(nets.Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16())

    made = open_backend(Converting().eval().bfloat16(), Config(channels_last=False), SIZE, CPU)
    assert made.layers == ("features",)


def test_a_compiler_that_fails_is_named_when_the_model_is_loaded() -> None:
    """Not at the first prediction, which may be long after the worker reported ready."""

    def broken(_graph: object, _inputs: object) -> Any:
        raise ValueError("no such instruction\nand a long trace")

    torch.manual_seed(0)  # of some weights no score depends on any map
    compiled = torch.compile(nets.Deep().eval(), backend=broken)
    with pytest.raises(ConfigError, match=r"^pt2: the compiled model does not run: .*no such instruction") as caught:
        open_backend(compiled, Config(), SIZE, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["eager", "script", "exported"])
def test_a_layer_that_shows_nothing_is_refused(kind: str) -> None:
    """One that only the class token of is read, with the layer that the rule would take."""
    with pytest.raises(
        ConfigError, match=r"^layer norm cannot be explained: .* none of its cells .*class token.*; the rule would take blocks"
    ):
        open_backend(nets.loaded("tokens", kind), Config(layers=("norm",)), SIZE, CPU)


@pytest.mark.parametrize("grid", [None, (4, 8)])
def test_tokens_of_oblong_patches_lie_as_the_patches_do(grid: tuple[int, int] | None) -> None:
    """A square picture in rows of oblong patches: found by trial, or as `token_grid` says."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, (8, 4), (8, 4))
            self.mix = nn.Linear(8, 8)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.mix(self.embed(x).flatten(2).transpose(1, 2)).relu().mean(1))

    model = Bare()
    made = open_backend(model, Config(layers=("mix",), token_grid=grid), SIZE, CPU)
    batch, targets = nets.pictures(2), torch.tensor([1, 4])
    _, activation, _ = nets.by_autograd(model, "mix", batch, targets)
    captured = made.capture.forward(batch, ["mix"])
    assert torch.allclose(captured.activation("mix"), activation.reshape(2, 4, 8, 8).permute(0, 3, 1, 2), atol=1e-6)
    assert open_backend(model, Config(token_grid=(4, 8)), SIZE, CPU).layers == ("mix",)


@pytest.mark.parametrize("model", [lambda pictures: pictures, object(), "model"], ids=["function", "object", "text"])
def test_what_is_no_model_is_refused(model: object) -> None:
    """An ONNX session, a library that AOTInductor compiled, or anything else: the message says what is accepted."""
    with pytest.raises(ConfigError, match=r"a model of the type \w+ has no layers .*accepted are eager modules, TorchScript"):
        open_backend(model, Config(), SIZE, CPU)


def test_a_model_that_does_not_run_is_told_in_one_line() -> None:
    """Another number of channels, or an answer that is no class scores."""
    with pytest.raises(ConfigError, match=r"^the model does not run on pictures of shape \[2, 3, 32, 32\]: [^\n]+$"):
        open_backend(nn.Conv2d(4, 3, 3), Config(), SIZE, CPU)
    with pytest.raises(ConfigError, match=r"output must be class scores of shape \[N, classes\], got shape \[2, 3, 30, 30\]"):
        open_backend(nn.Sequential(nn.Conv2d(3, 3, 3)), Config(), SIZE, CPU)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_memory_format_that_was_asked_for(wanted: bool) -> None:
    """The model's weights lie so, and the scores are the same."""
    model = nets.Pooled().eval()
    expected = model(PICTURES)
    made = open_backend(model, Config(channels_last=wanted), SIZE, CPU)
    assert made.channels_last is wanted
    assert model.get_parameter("stem.0.weight").is_contiguous(memory_format=torch.channels_last) is wanted
    assert torch.allclose(made.capture.forward(PICTURES, ()).logits, expected, atol=1e-6)


def test_a_program_keeps_its_memory_format() -> None:
    """Channels_last cannot be had there, and is not dropped silently."""
    with pytest.raises(
        ConfigError, match="channels_last: true is for eager models; a model of the kind torchscript keeps its own"
    ):
        open_backend(nets.loaded("pooled", "script"), Config(channels_last=True), SIZE, CPU)


def test_a_model_whose_weights_are_buffers_is_tuned() -> None:
    """Quantised or frozen weights may be no parameters."""

    class Fixed(nn.Module):
        kernel: Tensor
        head: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.register_buffer("kernel", torch.randn(6, 3, 3, 3, dtype=torch.float64))
            self.register_buffer("head", torch.randn(5, 6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(nn.functional.conv2d(x, self.kernel, padding=1))
            return x.mean((2, 3)) @ self.head.T

    made = open_backend(Fixed().eval(), Config(), SIZE, CPU, tune=True)
    assert made.layers == ("act",)


@pytest.mark.parametrize("channels_last", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_is_tuned_in_it(dtype: torch.dtype, channels_last: bool | None) -> None:
    """Its convolutions stay as they are."""
    model = nets.Pooled().eval().to(dtype)
    made = open_backend(model, Config(channels_last=channels_last), SIZE, CPU, tune=True)
    assert made.memory_format != "prepacked"
    assert made.capture.forward(PICTURES, ()).logits.shape == (2, made.outputs)


def test_opening_tells_what_it_does() -> None:
    """So that whoever waits for a large model sees which part takes so long."""
    told: list[str] = []
    open_backend(nets.net("pooled"), Config(channels_last=False), SIZE, CPU, tell=told.append)
    assert [part.split()[0] for part in told] == ["looking", "trying", "finding"]
    assert "features" in told[-1]
