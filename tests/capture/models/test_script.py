"""TorchScript archives: what cannot be reached is refused with a way out, and the rewriting leaves the program as it was."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn

from camserve.capture import open_backend, open_model, synthesize_pictures
from camserve.capture.backend import Backend
from camserve.capture.models.programs.torchscript import outputs, rewriting
from camserve.capture.models.programs.torchscript.script import ScriptClassifier
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)


def open_(model: object, *layers: str) -> Backend:
    """A backend for pictures of the nets' size."""
    return open_backend(model, Config(layers=layers, channels_last=False), SIZE, CPU)


class Branching(nn.Module):
    """A layer inside a branch, one inside a loop, and one whose own branch gives its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 4, 1)
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU())
        self.looped = nn.Conv2d(6, 6, 3, 1, 1)
        self.whole = Choice()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.stem(x)
        if float(x.detach().sum()) > -1e9:
            x = self.inner(x)
        for _ in range(x.dim() - 3):
            x = self.looped(x)
        return self.fc(self.whole(x).mean((2, 3)))


class Choice(nn.Module):
    """Gives the output of a branch."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]`, twice."""
        if float(x.detach().sum()) > 1e9:
            return x
        return torch.tanh(x)


@pytest.fixture(scope="module")
def branching() -> object:
    """The net above, scripted, saved and loaded."""
    torch.manual_seed(0)
    return nets.stored(Branching().eval(), "script", PICTURES)


@pytest.mark.parametrize("layer", ["inner", "inner.0", "looped"])
def test_values_in_branches_and_loops_are_refused(branching: object, layer: str) -> None:
    """The message says why, and names layers that work, among them the pooled layer's input."""
    with pytest.raises(ConfigError) as caught:
        open_(branching, layer)
    message = str(caught.value)
    assert message.startswith(f"layer {layer} cannot be reached: it runs inside a branch or a loop of the TorchScript program")
    assert "layers with a map: " in message
    assert "pool_input" in message


@pytest.mark.parametrize("layer", ["stem", "whole", "pool_input"])
def test_what_holds_a_branch_can_be_explained(branching: object, layer: str) -> None:
    """A layer with branches in it, in front of it or behind it has the gradients of autograd."""
    torch.manual_seed(0)
    original = Branching().eval()
    batch, targets = nets.pictures(2), torch.tensor([1, 3])
    scores, activation, gradient = nets.by_autograd(original, "whole" if layer == "pool_input" else layer, batch, targets)
    captured = open_(branching, layer).capture.forward(batch, [layer])
    assert torch.allclose(captured.logits, scores, atol=1e-6)
    assert torch.allclose(captured.activation(layer), activation, atol=1e-6)
    found = captured.gradients(layer, torch.arange(2), targets)
    assert torch.allclose(found.expand_as(gradient), gradient, atol=1e-7)


def test_a_frozen_archive_offers_the_pooled_layers_input() -> None:
    """It is the default there, and a name that the original had is refused with the reason."""
    frozen = nets.loaded("deep", "frozen")
    assert open_(frozen).layers == ("pool_input",)
    with pytest.raises(ConfigError, match=r"layer features does not exist.* no names of layers .*layers with a map: pool_input"):
        open_(frozen, "features")


def test_a_frozen_archive_without_pooling_is_refused() -> None:
    """A transformer that reads one token pools nothing: the message asks for the archive as it was before."""
    with pytest.raises(ConfigError, match=r"no layer with a spatial map .*torch\.jit\.freeze.*take the archive as it was before"):
        open_(nets.loaded("tokens", "frozen"))


def test_a_layer_may_be_called_pool_input() -> None:
    """A module of that name keeps it."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool_input = nn.Conv2d(3, 6, 3, 4, 1)
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool_input(x).relu().mean((2, 3)))

    model = Named().eval()
    made = open_(nets.stored(model, "trace", PICTURES), "pool_input")
    captured = made.capture.forward(PICTURES, ["pool_input"])
    assert torch.allclose(captured.activation("pool_input"), model.pool_input(PICTURES), atol=1e-6)


def test_a_torch_without_the_private_parts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what is missing, the version, and what to do instead."""
    monkeypatch.setattr(rewriting, "NEEDED", {"torch._C": ("_jit_pass_inline", "_gone"), "torch._C.Graph": ("copy", "lost")})
    with pytest.raises(ConfigError) as caught:
        open_(nets.loaded("pooled", "script"))
    assert str(caught.value) == (
        f"TorchScript archives cannot be explained with torch {torch.__version__}: it has no torch._C._gone or "
        "torch._C.Graph.lost; take another version of torch, or the model as eager weights or as an exported program"
    )


def test_every_private_part_that_is_used_is_looked_for() -> None:
    """What is looked for is what is called on torch._C and its types."""
    rewriting.check_torch()
    source = Path(rewriting.__file__).read_text() + Path(outputs.__file__).read_text()
    for owner, names in rewriting.NEEDED.items():
        for name in names:
            assert f".{name}" in source, (owner, name)


class LockedCapture(nn.Module):
    """Flattens all that it gets into one row, so a trace for one picture takes one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 4, 1)
        self.fc = nn.Linear(6 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[1, 3, H, W]` to `[1, 5]`."""
        return self.fc(self.conv(x).relu().reshape(1, -1))


def test_a_trace_for_one_picture_is_fed_one_by_one() -> None:
    """Three pictures get three answers, each that of the picture alone."""
    torch.manual_seed(0)
    model = LockedCapture().eval()
    made = open_(nets.stored(model, "trace", PICTURES[:1]))
    assert made.layers == ("conv",)
    batch, targets = nets.pictures(3), torch.tensor([4, 0, 2])
    captured = made.capture.forward(batch, ["conv"])
    found = captured.gradients("conv", torch.tensor([2, 0]), targets[[2, 0]])
    for place, row in enumerate((2, 0)):
        scores, activation, gradient = nets.by_autograd(model, "conv", batch[row : row + 1], targets[row : row + 1])
        assert torch.allclose(captured.logits[row], scores[0], atol=1e-6)
        assert torch.allclose(captured.activation("conv")[row], activation[0], atol=1e-6)
        assert torch.allclose(found[place], gradient[0], atol=1e-7)


class Whole(nn.Module):
    """Takes the number of pictures for a number like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 4, 1)
        self.fc = nn.Linear(6 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`; traced, N stays what it was."""
        return self.fc(self.conv(x).relu().view(len(x), -1))


class Means(Whole):
    """The same with a reshape that fits any number of pictures, and then gives as many rows as it was traced for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.conv(x).relu().view(len(x), 6, -1).mean(2))


@pytest.mark.parametrize("made", [Whole, Means])
@pytest.mark.parametrize("count", [2, 4, 7])
def test_a_trace_for_several_pictures_is_fed_that_many(made: type[Whole], count: int) -> None:
    """Five pictures get their own scores, activations and gradients, in pieces that are filled up; and so does one."""
    torch.manual_seed(0)
    model = made().eval()
    program = nets.stored(model, "trace", nets.pictures(count))
    assert open_model(program, PICTURES).batch == (count, count)
    made_of = open_(program)
    assert made_of.layers == ("conv",)
    for pictures in (5, 1):
        batch, targets = nets.pictures(pictures), torch.arange(pictures)
        captured = made_of.capture.forward(batch, ["conv"])
        scores, activation, gradient = nets.by_autograd(model, "conv", batch, targets)
        assert torch.allclose(captured.logits, scores, atol=1e-6)
        assert torch.allclose(captured.activation("conv"), activation, atol=1e-6)
        found = captured.gradients("conv", torch.arange(pictures), targets)
        assert torch.allclose(found.expand_as(gradient), gradient, atol=1e-7)


def test_a_trace_for_more_pictures_than_are_tried_says_what_failed() -> None:
    """The interpreter's own reason, not the head of its traceback."""
    program = nets.stored(Whole().eval(), "trace", nets.pictures(65))
    with pytest.raises(
        ConfigError, match=r"^the model does not run on pictures of shape .*: RuntimeError: shape '\[65, -1\]' is"
    ):
        open_(program)


def test_a_trace_whose_pictures_depend_on_each_other_is_refused() -> None:
    """It cannot be fed one by one, and nobody's answer may depend on who else asked."""

    class Both(Whole):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x + 10 * x.mean(0, keepdim=True)

    program = nets.stored(Both().eval(), "trace", nets.pictures(3))
    with pytest.raises(ConfigError, match=r"^the model takes 3 pictures at once, and these change each other's scores"):
        open_(program)


def test_what_a_program_raises_is_told_by_its_last_line() -> None:
    """A script's own exception, and an operation's."""

    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] != 48:
                raise ValueError("48 rows, please")
            return x.mean((2, 3))

    with pytest.raises(ConfigError, match=r"\[2, 3, 32, 32\]: (builtins\.)?ValueError: 48 rows, please$"):
        open_(nets.stored(Strict().eval(), "script", PICTURES))
    narrow = nn.Sequential(nn.Conv2d(4, 6, 3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r": RuntimeError: .*expected input\[.*\] to have 4 channels, but got 3 channels"):
        open_(nets.stored(narrow.eval(), "script", PICTURES))


class Frozen(nn.Module):
    """A backbone without gradients, in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        with torch.no_grad():
            x = self.trunk(x)
            if x.dim() == 4:
                with torch.no_grad():
                    x = x * 2
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("layer", ["trunk", "trunk.0"])
def test_a_script_that_switches_gradients_off_is_explained(layer: str) -> None:
    """In a block, and in a branch within it: the program that is differentiated has neither."""
    torch.manual_seed(0)
    model = Frozen().eval()
    module = nets.stored(model, "script", PICTURES)
    assert open_(module).layers == ("trunk",)
    captured = open_(module, layer).capture.forward(PICTURES, [layer])
    targets = torch.tensor([1, 3])
    activation = model.trunk[: 1 if layer == "trunk.0" else 2](PICTURES).detach().requires_grad_()
    rest = torch.tanh(activation) if layer == "trunk.0" else activation
    scores = model.head(2 * rest.mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores[[0, 1], targets].sum(), activation)
    assert torch.allclose(captured.logits, scores, atol=1e-6)
    assert torch.allclose(captured.activation(layer), activation, atol=1e-6)
    assert torch.allclose(captured.gradients(layer, torch.arange(2), targets), gradient, atol=1e-7)


def test_only_what_is_written_into_later_is_copied() -> None:
    """Operations in place before the layer, on other values, and on the head's own copy take no copy of the activation."""
    for name, layers in (("deep", ("norm", "relu", "conv")), ("twice", ("act", "squeeze")), ("functional", ("body", "body.0"))):
        classifier = open_model(nets.loaded(name, "script"), PICTURES)
        assert isinstance(classifier, ScriptClassifier)
        for layer in layers:
            _, writes = outputs.add_leaves(classifier.program, classifier.places_of(classifier.survey(PICTURES).site(layer)))
            assert not writes


class Mixing(nn.Module):
    """Adds the mean over the batch to every picture's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 4, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.fc(self.conv(x).relu().mean((2, 3)))
        return x + 10 * x.mean(0, keepdim=True)


def test_a_program_that_mixes_pictures_is_fed_one_by_one() -> None:
    """Nobody's answer depends on who else asked, and the user is told."""
    (note,) = open_(nets.stored(Mixing().eval(), "script", PICTURES)).notes
    assert note.startswith("Warning: pictures in one pass change each other's scores")
    assert open_(nets.loaded("pooled", "script")).notes == ()


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_the_program_itself_is_not_changed(kind: str) -> None:
    """The module that predicts has the graph that it had, so it can be saved, and opened again."""
    module = nets.stored(nets.net("deep"), kind, PICTURES)
    before = str(module.graph)  # type: ignore[attr-defined]
    made = open_(module, "norm", "conv")
    made.capture.forward(PICTURES, ["norm", "conv"]).gradients("norm", torch.arange(2), torch.tensor([0, 1]))
    assert str(module.graph) == before  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, io.BytesIO())
    assert open_(module, "norm").layers == ("norm",)


def test_the_altered_graphs_are_well_formed() -> None:
    """torch's own check of graphs finds nothing, for every cut that is made."""
    for name in ("deep", "twice", "tokens"):
        classifier = open_model(nets.loaded(name, "script"), PICTURES)
        assert isinstance(classifier, ScriptClassifier)
        classifier.program.graph.lint()
        places = [mark.place for mark in classifier.program.marks] + [
            place for ends in classifier.program.pools for place in ends
        ]
        for cut in (outputs.insert_leaf, outputs.insert_leaf_in_place, outputs.insert_statistics):
            outputs.add_outputs(classifier.program, dict.fromkeys(places, cut)).graph.lint()


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_no_graph_is_left_with_an_insert_point_at_a_destroyed_node(kind: str) -> None:
    """torch's own passes go back to the insert point, and abort the process where its node is gone."""
    classifier = ScriptClassifier(nets.loaded("pooled", kind), PICTURES)
    cut = outputs.add_outputs(classifier.program, {classifier.program.marks[-1].place: outputs.insert_leaf})
    assert classifier.program.graph.insertPoint().kind() == "prim::Return"
    assert cut.graph.insertPoint().kind() == "prim::Return"


def test_a_program_that_was_not_saved_is_taken_too() -> None:
    """A module straight from `torch.jit.script` or `torch.jit.trace`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = [torch.jit.script(nets.net("deep")), torch.jit.trace(nets.net("deep"), PICTURES)]
    expected = open_(nets.net("deep"), "norm").capture.forward(PICTURES, ["norm"]).activation("norm")
    for module in live:
        captured = open_(module, "norm").capture.forward(PICTURES, ["norm"])
        assert torch.allclose(captured.activation("norm"), expected, atol=1e-6)


class Optional(nn.Module):
    """A trunk behind arguments that a caller may leave out, one of which chooses how it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(6, nets.CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, plain: bool = True, name: str = "a") -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.trunk(x) if plain and mask is None else self.trunk(x * 2)
        if mask is not None:
            x = x * mask
        return self.fc(scale * x.mean((2, 3))) if name == "a" else self.fc(x.mean((2, 3)))


def test_arguments_that_may_be_left_out_keep_their_defaults() -> None:
    """A layer inside a branch on one of them is found, and everything is as the eager model has it."""
    torch.manual_seed(0)
    model = Optional().eval()
    made = open_(nets.stored(model, "script", PICTURES))
    assert made.layers == ("trunk",)
    targets = torch.tensor([1, 4])
    scores, output, slope = nets.by_autograd(model, "trunk", PICTURES, targets)
    captured = made.capture.forward(PICTURES, ["trunk"])
    assert torch.allclose(captured.logits, scores, atol=1e-6)
    assert torch.allclose(captured.activation("trunk"), output, atol=1e-6)
    gradients = captured.gradients("trunk", torch.arange(2), targets)
    assert torch.allclose(gradients.expand_as(slope), slope, atol=1e-7)
