"""What goes past a layer: the share that is measured, the default that follows from it, and what is said of a layer by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.layers import nets as toys
from tests.support.models import nets
from tests.support.models.surveys import default_layer
from torch import Tensor, nn

from camserve.capture import open_backend, open_model, synthesize_pictures
from camserve.capture.choose.bypass import MAX_BYPASS, BypassTrial
from camserve.capture.models.kinds import survey_model
from camserve.capture.survey.layers import Survey
from camserve.core.config import Config

pytestmark = pytest.mark.numeric

SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)


def opened(model: object, *layers: str) -> Any:
    """A backend; nothing is timed."""
    return open_backend(model, Config(layers=layers, channels_last=None), SIZE, torch.device("cpu"))


def measured(model: object, layer: str, pictures: Tensor = PICTURES) -> float | None:
    """The bypass of a layer."""
    trial, survey = tried(model, pictures)
    return trial.measure(survey.info(layer))


def tried(model: object, pictures: Tensor = PICTURES) -> tuple[BypassTrial, Survey]:
    """A trial of a model, and its layers."""
    classifier = open_model(model, pictures)
    survey = survey_model(classifier, pictures)
    return BypassTrial(classifier, pictures, survey.maps), survey


def beside(model: object, layer: str) -> float | None:
    """What the tokens beside a layer's cells carry past it."""
    trial, survey = tried(model)
    return trial.measure_beside(survey.info(layer).site)


class Net(nn.Module):
    """A trunk to `[N, 8, 8, 8]`, and further layers that `head` uses."""

    def __init__(self, head: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, 4, 1)
        self.small = nn.Conv2d(8, 2, 1)
        self.large = nn.Conv2d(8, 6, 1)
        self.gate = nn.Conv2d(8, 1, 3, 1, 1)
        self.bottleneck = nn.Linear(8, 1)
        self.spread = nn.Linear(1, nets.CLASSES)
        self.fc = nn.Linear(8, nets.CLASSES)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.head(self, self.trunk(x).relu())


def made(head: Callable[[Any, Tensor], Tensor]) -> Net:
    """The net with random weights."""
    torch.manual_seed(0)
    return Net(head).eval()


def branches(m: Any, x: Tensor) -> Tensor:
    """Two branches, concatenated by a function."""
    return m.fc(torch.cat([m.small(x), m.large(x)], 1).mean((2, 3)))


def gated(m: Any, x: Tensor) -> Tensor:
    """A gate of one channel over the trunk."""
    return m.fc((x * m.gate(x).sigmoid()).mean((2, 3)))


def pooled(m: Any, x: Tensor) -> Tensor:
    """Attention-MIL: cells weighted by one number each."""
    return m.fc((x * m.gate(x).flatten(2).softmax(2).unflatten(2, x.shape[2:])).sum((2, 3)))


def narrow(m: Any, x: Tensor) -> Tensor:
    """All passes through one number."""
    return m.spread(m.bottleneck(x.mean((2, 3))))


def test_the_share_is_what_the_other_branch_changes() -> None:
    """By hand, in float64: of two branches behind which all is linear, one's share of the change remains where the other is held."""
    model = made(branches)
    pictures = torch.cat([PICTURES, PICTURES[:1].flip(2, 3)])
    double = made(branches).double()
    with torch.no_grad():
        trunk = double.trunk(pictures.double()).relu()
        whole = torch.cat([double.small(trunk), double.large(trunk)], 1).mean((2, 3))
        change = whole.roll(1, 0) - whole
        weight = double.fc.weight
        expected = float((change[:, 2:] @ weight[:, 2:].T).norm() / (change @ weight.T).norm())
    assert measured(model, "small") == pytest.approx(expected, rel=1e-4)
    assert expected > MAX_BYPASS
    assert measured(model, "trunk") == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in nets.KINDS if kind not in ("eager", "frozen")])
@pytest.mark.parametrize(("name", "layer"), [("tokens", "blocks.0.norm"), ("deep", "norm"), ("sequence", "mix.0")])
def test_every_kind_measures_the_same(name: str, layer: str, kind: str) -> None:
    """Tokens before and behind pictures, batches of a fixed size, programs."""
    assert measured(nets.loaded(name, kind), layer) == pytest.approx(measured(nets.net(name), layer), abs=1e-4)
    assert beside(nets.loaded(name, kind), layer) == pytest.approx(beside(nets.net(name), layer), abs=1e-4)


def test_one_picture_at_a_time() -> None:
    """A program for one picture holds one picture's output while it sees another."""
    program = nets.stored(nets.net("tokens"), "exported for 3", PICTURES[:1])
    own = measured(nets.net("tokens"), "blocks.0.norm")
    assert own is not None
    assert measured(program, "blocks.0.norm") == pytest.approx(own, rel=0.8)
    assert measured(program, "blocks.0") == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["eager", "trace", "exported"])
@pytest.mark.parametrize("head", [gated, pooled])
def test_a_gate_is_not_the_layer(head: Callable[[Any, Tensor], Tensor], kind: str) -> None:
    """Its one channel is the same for every class; what it weighs is taken."""
    model = made(head)
    made_backend = opened(nets.stored(model, kind, PICTURES))
    assert made_backend.layers == ("trunk",)
    assert made_backend.bypass["trunk"] == pytest.approx(0, abs=1e-5)
    assert made_backend.doubts == {}


def test_where_no_layer_holds_all_the_best_is_taken_and_the_share_said() -> None:
    """The scores are read at the picture's pixels too, which no layer has."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.fc = nn.Conv2d(3, 6, 3, 4, 1), nn.Linear(9, nets.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cat([self.one(x).relu().mean((2, 3)), x.mean((2, 3))], 1))

    torch.manual_seed(0)
    backend = opened(Apart().eval())
    share = backend.bypass["one"]
    assert backend.layers == ("one",)
    assert share > MAX_BYPASS
    assert f"; {share:.0%} of what changes the scores goes past it, and past every other as much or more" in backend.why
    assert backend.doubts == {"one": f"{share:.0%} of what changes the scores goes past it, which its maps cannot show"}


def test_a_layer_by_name_is_measured_and_doubted() -> None:
    """It is explained all the same."""
    backend = opened(made(branches), "trunk", "small")
    assert backend.layers == ("trunk", "small")
    assert list(backend.doubts) == ["small"]
    assert "past it, which its maps cannot show" in backend.doubts["small"]
    gate = opened(made(lambda m, x: m.fc(x.mean((2, 3)) + m.gate(x).mean((2, 3)) * 1e-3)), "gate")
    assert "goes past it" in gate.doubts["gate"]


def test_one_channel_that_nothing_bypasses_is_doubted_too() -> None:
    """A map of one channel, read cell by cell: classes differ, and their maps do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(64, 5)).eval()
    assert opened(model).layers == ("1",)
    assert opened(model, "2").doubts == {"2": "its map has a single channel, so every class has the same map there"}


def test_maps_that_are_the_same_for_every_class_are_said_to_be() -> None:
    """Behind one number all gradients are parallel, at every layer."""
    backend = opened(made(narrow))
    assert backend.layers == ("trunk",)
    assert "; but every class has the same map there, and no other layer fits" in backend.why
    assert backend.doubts == {"trunk": "every class has the same map there"}


def test_scores_that_never_change_measure_nothing() -> None:
    """A head of zeros: the last layer is taken, as its gradient reaches."""
    model = made(gated)
    nn.init.zeros_(model.fc.weight)
    assert measured(model, "trunk") is None
    assert default_layer(model, PICTURES)[0] == "trunk"


def run_tokens(model: Any, pictures: Tensor, token: Tensor | None, norm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of the net of tokens, the class token behind its first block, and the norm of its second; both may be given."""
    tokens = model.patch(pictures).flatten(2).transpose(1, 2)
    stream = model.blocks[0](torch.cat([model.token.expand(len(pictures), -1, -1), tokens], 1))
    stream = stream if token is None else torch.cat([token, stream[:, 1:]], 1)
    own = model.blocks[1].norm(stream)
    normed = own if norm is None else norm
    query, key, value = model.blocks[1].mix(normed).chunk(3, -1)
    mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
    return model.fc(model.norm(stream + mixed)[:, 0]), stream[:, :1], own


def test_what_a_class_token_has_gathered_counts_against_no_layer() -> None:
    """By hand, in float64: nothing of what the cells change goes past the norm that reads them; what the token carries is said."""
    double, pictures = copy.deepcopy(nets.net("tokens")).double(), torch.cat([PICTURES, PICTURES[:1].flip(2, 3)]).double()
    with torch.no_grad():
        fixed, token, norm = run_tokens(double, pictures, None, None)
        changed, _, moved_norm = run_tokens(double, pictures.roll(1, 0), None, None)
        held, _, _ = run_tokens(double, pictures.roll(1, 0), token, norm)
        cells, _, _ = run_tokens(double, pictures.roll(1, 0), None, torch.cat([moved_norm[:, :1], norm[:, 1:]], 1))
    expected = float((cells - fixed).norm() / (changed - fixed).norm())
    assert expected > MAX_BYPASS
    assert torch.allclose(held, fixed)
    for layer in ("blocks.0", "blocks.1.norm"):
        assert measured(nets.net("tokens"), layer) == pytest.approx(0, abs=1e-5)
        assert beside(nets.net("tokens"), layer) == pytest.approx(expected, rel=1e-4)
    assert default_layer(nets.net("tokens"), PICTURES)[0] == "blocks.1.norm"
    assert opened(nets.net("tokens")).beside == {"blocks.1.norm": pytest.approx(expected, rel=1e-4)}
    assert beside(made(branches), "trunk") is None


def test_cells_that_go_past_the_norm_count() -> None:
    """Where the scores are read at the cells too, or by keys that are no part of the layer."""

    class Summed(nets.Tokens):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = self.blocks[0](torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))
            return self.fc(self.norm(self.blocks[1](x))[:, 0] + x[:, 1:].mean(1))

    torch.manual_seed(0)
    summed, separate = Summed().eval(), toys.Transformer(toys.SeparateAttention).eval()
    assert (measured(summed, "blocks.1.norm") or 0) > MAX_BYPASS
    assert default_layer(summed, PICTURES)[0] == "blocks.0"
    attention: Any = separate.get_submodule("blocks.2.attn")
    for projection in (attention.query, attention.key):
        nn.init.normal_(projection.weight, std=0.5)
    nn.init.normal_(attention.proj.weight, std=1e-3)  # the class token carries nearly everything past all of them
    assert (beside(separate, "blocks.2.norm1") or 0) > 0.9
    shares = [measured(separate, f"blocks.2.{name}") or 0 for name in ("attn.value", "attn.key", "norm1")]
    assert min(shares[:2]) > MAX_BYPASS > shares[2]
    assert opened(separate).layers == ("blocks.2.norm1",)


def test_a_transformer_gets_the_same_layer_however_it_is_written() -> None:
    """Its residuals inside its blocks, or outside of all modules."""
    torch.manual_seed(0)
    inside, outside = toys.Transformer().eval(), toys.Streamed().eval()
    parts = {"norm1": "0.0", "attn": "0.1", "norm2": "1.0", "mlp": "1.1"}
    weights = {}
    for name, values in inside.state_dict().items():
        path = name.split(".")
        names = ["layers", path[1], parts[path[2]], *path[3:]] if path[0] == "blocks" else path
        weights[".".join(names)] = values
    outside.load_state_dict(weights)
    found = []
    for model, layer in ((inside, "blocks.2.norm1"), (outside, "layers.2.0.0")):
        backend = opened(model)
        assert backend.layers == (layer,)
        assert backend.bypass[layer] == pytest.approx(0, abs=1e-5)
        captured = backend.capture.forward(PICTURES, [layer])
        found.append(
            (captured.activation(layer), captured.gradients(layer, torch.arange(len(PICTURES)), captured.logits.argmax(1)))
        )
    torch.testing.assert_close(*found)


def test_registers_behind_the_cells_are_beside_them() -> None:
    """Where they stand is found by trial; by hand, in float64: what they and the class token carry, all cells held and no other."""
    torch.manual_seed(0)
    model = toys.Transformer(registers=4).eval()
    backend, double = opened(model), copy.deepcopy(model).double()
    layout = backend.aligned["blocks.2.norm1"].site.layout
    assert (layout.extra, layout.behind) == (1, 4)
    pictures, kept = torch.cat([PICTURES, PICTURES[:1].flip(2, 3)]).double(), []
    norm = double.get_submodule("blocks.2.norm1")
    with torch.no_grad():
        handle = norm.register_forward_hook(lambda _module, _given, output: kept.append(output))
        fixed, changed = double(pictures), double(pictures.roll(1, 0))
        handle.remove()
        norm.register_forward_hook(lambda _module, _given, own: torch.cat([own[:, :1], kept[0][:, 1:65], own[:, 65:]], 1))
        expected = float((double(pictures.roll(1, 0)) - fixed).norm() / (changed - fixed).norm())
    assert expected > MAX_BYPASS
    assert backend.beside == {"blocks.2.norm1": pytest.approx(expected, rel=1e-4)}


class Flipped(nn.Module):
    """Runs its trunk over the picture and over its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return sum(self.fc(self.trunk(each).mean((2, 3)).tanh()) for each in (x, x.flip(3)))


@pytest.mark.parametrize("kind", ["eager", "trace"])
def test_all_calls_that_count_are_held(kind: str) -> None:
    """Of a trunk that runs over two views; the last call alone would leave half."""
    torch.manual_seed(0)
    backend = opened(nets.stored(Flipped().eval(), kind, PICTURES))
    assert backend.layers == ("trunk",)
    assert backend.bypass["trunk"] == pytest.approx(0, abs=1e-5)
    assert backend.doubts == {}


PASSES = {"tokens": 22, "pooled": 17}
"""How often a model runs when it is opened: to read its outputs (2), to see that a picture's scores depend
on nothing else (4), to list its layers (1, and 2 where a module runs twice), to
try groups of layers (1 each), to measure their bypass (1, and 1 each; of tokens beside others 4 more, and 1 for what these
carry), to find its cells (1, and 2 more to follow the steps of a map, or of that of which tokens were made; 1 of each picture
where only slopes tell) and a closed form (2 or 3), and to see that gradients are its slopes where there is none (1)."""


@pytest.mark.parametrize(("name", "most"), PASSES.items())
def test_trials_share_their_passes(name: str, most: int) -> None:
    """What one trial of a layer has run, another does not run again: large models take seconds for each pass."""
    model, passes = copy.deepcopy(nets.net(name)), []  # which others share
    model.register_forward_pre_hook(lambda _module, given: passes.append(len(given[0])))
    open_backend(model, Config(channels_last=False), SIZE, torch.device("cpu"))
    assert len(passes) <= most


def test_products_that_cancel_before_a_norm_are_found() -> None:
    """The scores read a transformer's tokens through a norm over the channels alone; not so behind a ReLU and its convolutions."""

    def cancels(model: nn.Module, layer: str) -> bool:
        trial, survey = tried(model)
        return trial.cancels(survey.info(layer))

    normed = made(lambda net, x: net.fc(nn.functional.layer_norm(x.movedim(1, -1), (8,)).mean((1, 2))))
    assert cancels(normed, "trunk")
    assert cancels(nets.net("tokens"), "blocks.0")
    assert not cancels(nets.net("tokens"), "blocks.1.norm")
    assert not cancels(made(lambda net, x: net.fc(x.mean((2, 3)))), "trunk")
