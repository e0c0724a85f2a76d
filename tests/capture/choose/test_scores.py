"""Which outputs hold the class scores, of what kind they are, and in which function a model ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.comparison.closeness import assert_close, error_of_sum
from tests.support.models import heads, nets
from torch import Tensor, nn

from camserve.capture.backend import Backend, open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain.methods import gradcam_plus_plus

SIZE = (heads.SIDE, heads.SIDE)
CPU = torch.device("cpu")
KINDS = ("eager", "script", "trace", "exported")
ERROR = error_of_sum(8 * 64)

Make = Callable[..., heads.Net]


def backend(model: object, classes: int | None = None, **keys: Any) -> Backend:
    """A model as a worker opens it."""
    config = Config.from_mapping({"channels_last": False, **keys})
    return open_backend(model, config, SIZE, CPU, classes=classes)


FORMS: dict[str, tuple[Make, str, tuple[str, ...]]] = {
    "features first": (heads.FeaturesFirst, "1", KINDS),
    "nested": (heads.Nested, "1.0", KINDS),
    "a dictionary": (heads.Named, "prediction", ("eager", "script", "exported")),  # torch traces none
    "a named tuple": (heads.Tupled, "out", ("eager", "script")),  # torch.export cannot save it
}


@pytest.mark.numeric
@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [(make, name, kind) for make, name, kinds in FORMS.values() for kind in kinds],
    ids=[f"{form}-{kind}" for form, (*_, kinds) in FORMS.items() for kind in kinds],
)
def test_scores_among_several_outputs(make: Make, name: str, kind: str, deep: bool) -> None:
    """They are found without any labels, in every kind of model, and told; the scores and the gradients are theirs."""
    net = make(deep=deep).eval()
    given = heads.pictures()
    made = backend(nets.stored(net, kind, given), layers=[heads.LAYER])
    (note,) = [each for each in made.notes if "is served" in each]
    assert name in note
    assert not note.startswith("Warning")
    wanted = [heads.right(net, picture) for picture in given]
    captured = made.capture.forward(given, made.layers)
    assert_close(captured.values, [each.logits for each in wanted], ERROR)
    check_maps(made, given, wanted, [4, 0, 2])


def check_maps(made: Backend, given: Tensor, wanted: list[heads.Right], targets: list[int], error: float = ERROR) -> None:
    """The maps of one target each."""
    captured = made.capture.forward(given, made.layers)
    gradients = captured.gradients(heads.LAYER, torch.arange(len(given)), torch.tensor(targets))
    maps = gradcam_plus_plus(captured.activation(heads.LAYER), gradients)
    for found, expected, target in zip(maps, wanted, targets, strict=True):
        assert_close(found, expected.map(target), error)


ENDINGS: dict[str, tuple[Make, str, tuple[str, ...]]] = {
    "sigmoid module": (heads.ending(nn.Sigmoid()), "sigmoid", KINDS),
    "sigmoid function": (heads.Sigmoid, "sigmoid", KINDS),
    "softmax module": (heads.ending(nn.Softmax(1)), "softmax", KINDS),
    "softmax function": (heads.Softmax, "softmax", KINDS),
    "sigmoid by hand": (heads.Written, "sigmoid", ("eager", "trace")),
}


@pytest.mark.numeric
@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
@pytest.mark.parametrize(
    ("make", "ending", "kind"),
    [(make, ending, kind) for make, ending, kinds in ENDINGS.values() for kind in kinds],
    ids=[f"{name}-{kind}" for name, (*_, kinds) in ENDINGS.items() for kind in kinds],
)
def test_a_function_inside_is_recognised_and_looked_behind(make: Make, ending: str, kind: str, deep: bool) -> None:
    """Probabilities are the model's own; explained is the logit, not the probability nor its logarithm."""
    net = make(deep=deep).eval()
    given = heads.pictures()
    made = backend(nets.stored(net, kind, given), layers=[heads.LAYER])
    assert (made.reader.kind, made.reader.ending) == (ending, ending)
    assert any(f"ends in a {ending}" in note for note in made.notes)
    assert bool(made.closed_form) is (made.reader.reached and not deep)
    with torch.no_grad():
        own = net(given)
    for layers in ((), made.layers):
        values = made.capture.forward(given, layers).values
        assert torch.allclose(made.reader.probabilities(values), own, atol=1e-6)
    wanted = [heads.right(net, picture) for picture in given]
    check_maps(made, given, wanted, [1, 3, 0], 10 * ERROR if "hand" in str(make) or not made.reader.reached else ERROR)


@pytest.mark.numeric
@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [heads.Net, heads.Squeezed, heads.Sigmoid], ids=["[N, 1]", "[N]", "sigmoid"])
def test_one_logit_is_two_classes(make: Make, kind: str, deep: bool) -> None:
    """With sigmoid's probabilities; what speaks against the class is a map of its own, in closed form too."""
    net = make(1, deep).eval()
    given = heads.pictures()
    made = backend(nets.stored(net, kind, given), layers=[heads.LAYER])
    assert made.outputs == 2
    assert bool(made.closed_form) is not deep
    wanted = [heads.right(net, picture) for picture in given]
    positive = 1 / (1 + np.exp(-np.array([each.logits[0] for each in wanted])))
    found = made.reader.probabilities(made.capture.forward(given, ()).values).double().numpy()
    np.testing.assert_allclose(found, np.stack([1 - positive, positive], 1), atol=1e-6)
    captured = made.capture.forward(given, made.layers)
    for target, sign in ((0, -1), (1, 1)):
        gradients = captured.gradients(heads.LAYER, torch.arange(3), torch.full((3,), target))
        maps = gradcam_plus_plus(captured.activation(heads.LAYER), gradients)
        for heat, expected in zip(maps, wanted, strict=True):
            assert_close(heat, expected.map(0, sign), ERROR)


class Heads(nn.Module):
    """Any outputs of the features `[N, 8]` and of two linear layers."""

    def __init__(self, give: Callable[[Tensor, Tensor, Tensor], Any], classes: tuple[int, int] = (5, 3)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.kind, self.colour = nn.Linear(8, classes[0]), nn.Linear(8, classes[1])
        self.give = give

    def forward(self, x: Tensor) -> Any:
        """What `give` makes."""
        features = self.body(x).mean((2, 3))
        return self.give(features, self.kind(features), self.colour(features))


class Loose:
    """An object with attributes, as some libraries return."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


CHOSEN: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "heads: the first": (lambda f, a, b: (a, b), {}, "0"),
    "heads: as asked, by place": (lambda f, a, b: (a, b), {"output": 1}, "1"),
    "heads: as asked, by a text": (lambda f, a, b: (a, b), {"output": "1"}, "1"),
    "heads: as asked, by name": (lambda f, a, b: {"kind": a, "colour": b}, {"output": "colour"}, "colour"),
    "heads: as asked, by a name's place": (lambda f, a, b: {"kind": a, "colour": b}, {"output": 1}, "colour"),
    "heads: by the labels' number": (lambda f, a, b: [a, b], {"classes": 3}, "1"),
    "the scores are named": (lambda f, a, b: {"x": b, "scores": a}, {}, "scores"),
    "logits before others": (lambda f, a, b: {"out": b, "logits": a}, {}, "logits"),
    "the others are named": (lambda f, a, b: {"aux_head": b, "cls": a}, {}, "cls"),
    "probabilities beside logits": (lambda f, a, b: (a.softmax(1), a), {}, "1"),
    "an attribute": (lambda f, a, b: Loose(hidden_states=f, logits=a), {}, "logits"),
    "a loss that is not there": (lambda f, a, b: {"loss": None, "logits": a}, {}, "logits"),
    "hidden states first": (lambda f, a, b: {"hidden_states": (f, f), "logits": a}, {}, "logits"),
    "a mask first": (lambda f, a, b: (f[:, :1, None, None].expand(-1, 1, 8, 8), a), {}, "1"),
    "unit length is an embedding": (lambda f, a, b: (nn.functional.normalize(b), a), {}, "1"),
    "a head on a head": (lambda f, a, b: (f.tanh(), a), {}, "1"),
    "whole numbers are no scores": (lambda f, a, b: (a.argmax(1), a), {}, "1"),
}


@pytest.mark.parametrize(("give", "keys", "name"), CHOSEN.values(), ids=CHOSEN)
def test_which_output_is_served(give: Callable[..., Any], keys: dict[str, Any], name: str) -> None:
    """By name, by the labels, or by trial; the note names all that there are."""
    made = backend(Heads(give).eval(), **keys)
    assert ".".join(map(str, made.reader.path or ())) == name
    assert made.outputs == (3 if "colour" in name or keys.get("classes") == 3 or keys.get("output") in (1, "1") else 5)


def test_a_second_head_is_named() -> None:
    """With what serves it."""
    (note,) = backend(Heads(lambda f, a, b: (a, b)).eval()).notes
    assert (
        note
        == "Warning: The model gives 0 [2, 5] and 1 [2, 3]: 0 is served, as the first of 2 heads; --output 1 serves the other"
    )


REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "nothing tells": (
        lambda f, a, b: (a.reshape(-1, 5).cumsum(1)[:, :4].clone(), b.cumsum(1)[:, :2].clone()),
        {},
        r"nothing tells which .*: 0 \[2, 4\] and 1 \[2, 2\]; choose one \(--output 1\)",
    ),
    "a backbone": (
        lambda f, a, b: {"last_hidden_state": f[:, :, None, None].expand(-1, 8, 2, 2), "pooler_output": f},
        {},
        r"nothing tells which .*: last_hidden_state \[2, 8, 2, 2\] and pooler_output \[2, 8\]",
    ),
    "a map and its mean": (
        lambda f, a, b: (torch.stack([f, 0 * f], 2)[:, :, None], f / 2),
        {},
        r"nothing tells which .*: 0 \[2, 8, 1, 2\] and 1 \[2, 8\]",
    ),
    "no such output": (
        lambda f, a, b: (a, b),
        {"output": "kind"},
        r"no output 'kind'; the model gives 0 \[2, 5\] and 1 \[2, 3\]",
    ),
    "beyond": (lambda f, a, b: (a, b), {"output": 2}, "no output 2; the model gives"),
    "no scores": (lambda f, a, b: (a, f[:, :, None].expand(-1, 8, 3)), {"output": 1}, r"1 holds no class scores \[N, classes\]"),
    "an argmax": (lambda f, a, b: a.argmax(1), {}, "of int64, which are no scores"),
    "maps only": (lambda f, a, b: {"a": a[:, :, None].expand(-1, 5, 2)}, {}, r"wrap the model in .* made of a$"),
    "softmax, asked as sigmoid": (lambda f, a, b: a.softmax(1), {"scores": "sigmoid"}, "ends in a softmax: leave scores out"),
    "sigmoid, asked as softmax": (lambda f, a, b: a.sigmoid(), {"scores": "softmax"}, "ends in a sigmoid: leave scores out"),
    "a threshold for classes": (lambda f, a, b: a, {"threshold": 0.3}, "threshold: 0.3: .* this model's scores are softmax"),
    "a threshold for values": (lambda f, a, b: a, {"threshold": 0.3, "scores": "none"}, "this model's scores are none"),
}


@pytest.mark.parametrize(("give", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_trial_settles_is_refused(give: Callable[..., Any], keys: dict[str, Any], message: str) -> None:
    """In words that list what there is."""
    with pytest.raises(ConfigError, match=message):
        backend(Heads(give).eval(), **keys)


def test_logits_between_0_and_1_by_chance_stay_logits() -> None:
    """Whatever the first pictures give: a layer can drive them out."""
    net = heads.Net(3).eval()
    net.fc.weight.data *= 1e-2
    net.fc.bias.data = torch.tensor([0.4, 0.5, 0.6])
    made = backend(net)
    assert (made.reader.kind, made.reader.ending, made.notes) == ("softmax", "", ())


def test_one_output_that_is_no_logit_is_told() -> None:
    """Its sigmoid is always 1."""
    net = heads.Net(1).eval()
    assert not any("--scores none" in note for note in backend(net).notes)
    net.fc.bias.data += 50
    assert backend(net).notes[0].startswith("Warning: the model's output is 5")
    assert not backend(net, scores="none").notes


def test_values_do_not_contrast() -> None:
    """They are no rivals."""
    with pytest.raises(ConfigError, match="method: contrast: it contrasts classes"):
        backend(heads.Net(2).eval(), scores="none", method="contrast")


def test_values_are_what_the_model_gives() -> None:
    """No trial makes probabilities of them, though they lie between 0 and 1."""
    made = backend(heads.Sigmoid(1).eval(), scores="none")
    given = heads.pictures()
    with torch.no_grad():
        own = heads.Sigmoid(1).eval()(given)
    assert made.outputs == 1
    assert torch.equal(made.reader.probabilities(made.capture.forward(given, ()).values), own)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_lone_picture_may_lose_its_axis(classes: int) -> None:
    """`squeeze()` takes the axis of a lone picture too."""

    class Squeezing(heads.Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    made = backend(Squeezing(classes).eval())
    given = heads.pictures()
    together = made.capture.forward(given, ()).values
    assert together.shape == (3, classes)
    for row, picture in enumerate(given):
        assert torch.allclose(made.capture.forward(picture[None], made.layers).values, together[row : row + 1], atol=1e-5)
