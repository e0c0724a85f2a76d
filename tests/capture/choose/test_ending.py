"""Outputs that are no logits: percentages are read as such, distances and other functions of probabilities are refused or told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.capture.choose.test_scores import ERROR, backend, check_maps
from tests.support.models import heads, nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_model
from camserve.capture.choose.ending import Found, find_ending
from camserve.core.errors import ConfigError

Function = Callable[[Tensor], Tensor]
KINDS = ("eager", "trace", "exported")


class Compared(heads.Net):
    """The pooled features, compared with a vector of each class."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.compare = compare
        self.vectors = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        """A comparison for each class."""
        return self.compare(self.features(x), self.vectors)


def ending(function: Function, classes: int = 5, deep: bool = False) -> heads.Net:
    """A net whose logits go through a function."""
    return heads.ending(heads.Applied(function))(classes, deep).eval()


PERCENTAGES: dict[str, tuple[Function, str, bool]] = {
    "softmax": (lambda z: 100 * z.softmax(1), "softmax", True),
    "sigmoid": (lambda z: 100 * z.sigmoid(), "sigmoid", True),
    "softmax by hand": (lambda z: 100 * z.exp() / z.exp().sum(1, keepdim=True), "softmax", False),
    "sigmoid by hand": (lambda z: 100 / (1 + torch.exp(-z)), "sigmoid", False),
}


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("function", "name", "reached"), PERCENTAGES.values(), ids=PERCENTAGES)
def test_percentages_are_probabilities(function: Function, name: str, reached: bool, kind: str) -> None:
    """They are a hundredth of what the model gives, and explained is the logit, in passes with and without a layer."""
    net, given = ending(function), heads.pictures()
    made = backend(nets.stored(net, kind, given), layers=[heads.LAYER])
    assert (made.reader.kind, made.reader.ending, made.reader.scale, made.reader.reached) == (name, name, 100, reached)
    assert any("times 100" in note for note in made.notes)
    with torch.no_grad():
        own = net(given)
    for layers in ((), made.layers):
        values = made.capture.forward(given, layers).values
        assert torch.allclose(values, own, rtol=1e-5)
        assert torch.allclose(made.reader.probabilities(values), own / 100, rtol=1e-5)
    if name == "sigmoid" or reached:  # of a softmax that is not seen log p is explained
        wanted = [heads.right(net, picture) for picture in given]
        check_maps(made, given, wanted, [1, 3, 0], ERROR if reached else 10 * ERROR)


def test_one_percentage_may_be_a_value() -> None:
    """Two classes or a share of something: it says how to serve the latter."""
    made = backend(ending(lambda z: 100 * z.sigmoid(), classes=1), layers=[heads.LAYER])
    assert made.reader.binary
    assert any(note.startswith("Warning") and "--scores none" in note for note in made.notes)
    values = made.capture.forward(heads.pictures(), ()).values
    assert torch.allclose(made.reader.probabilities(values)[:, 1:], values / 100)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cdist": torch.cdist,
    "squares": lambda x, v: ((x[:, None] - v) ** 2).sum(-1),
    "length": lambda x, v: (x[:, None] - v).norm(dim=-1),
    "root": lambda x, v: torch.sqrt((x[:, None] - v).square().mean(-1) + 1e-6),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "eager") for name in DISTANCES), ("squares", "trace")])
def test_distances_are_refused(name: str, kind: str) -> None:
    """The most probable class would be the farthest one. As values they are served, and their negatives as logits."""
    compare = DISTANCES[name]
    net = nets.stored(Compared(compare).eval(), kind, heads.pictures())
    with pytest.raises(ConfigError, match="gives distances, of which the smallest is its class"):
        backend(net, layers=[heads.LAYER])
    assert backend(net, layers=[heads.LAYER], scores="none").reader.kind == "none"
    negative = Compared(lambda x, v: -compare(x, v)).eval()
    (note,) = backend(nets.stored(negative, kind, heads.pictures()), layers=[heads.LAYER]).notes
    assert "negative distances" in note


UNREADABLE: dict[str, tuple[Function, str]] = {
    "rating": (lambda z: 5 * z.sigmoid(), "5 times a sigmoid,"),
    "reversed": (lambda z: 1 - z.sigmoid(), "-1 times a sigmoid [+] 1"),
    "two-sided": (lambda z: 2 * z.softmax(1) - 1, "2 times a softmax - 1"),
    "likelihood": (lambda z: -z.log_softmax(1), "-1 times a log-softmax"),
    "decimal": (lambda z: z.softmax(1).log10(), "0.4343 times a log of softmax"),
    "log-sigmoid": (functional.logsigmoid, "logarithm of a sigmoid"),
    "log of sigmoid": (lambda z: torch.log(z.sigmoid() + 1e-7), "logarithm of a sigmoid"),
    "sums": (lambda z: 3 * z.exp() / z.exp().sum(1, keepdim=True), "add up to 3 for every picture"),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "eager") for name in UNREADABLE), ("rating", "trace"), ("sums", "trace")])
def test_functions_of_probabilities_are_refused(name: str, kind: str) -> None:
    """What came, and what to do."""
    function, message = UNREADABLE[name]
    with pytest.raises(ConfigError, match=message):
        backend(nets.stored(ending(function), kind, heads.pictures()), layers=[heads.LAYER])


def _cosine(x: Tensor, vectors: Tensor) -> Tensor:
    return functional.linear(functional.normalize(x), functional.normalize(vectors))


TOLD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "product": (lambda: Compared(_cosine), "are cosines, never beyond 1:"),
    "function": (lambda: Compared(lambda x, v: functional.cosine_similarity(x[:, None], v, dim=-1)), "are cosines"),
    "tanh": (lambda: ending(torch.tanh), "are a tanh, never beyond 1:"),
    "never above 0": (lambda: ending(lambda z: -functional.softplus(-z)), "ever above 0, whatever its layers give"),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "eager") for name in TOLD), ("product", "trace"), ("function", "trace")])
def test_outputs_that_are_hardly_logits_are_told(name: str, kind: str) -> None:
    """Their order is right, so they are served, with a warning."""
    make, message = TOLD[name]
    (note,) = backend(nets.stored(make().eval(), kind, heads.pictures()), layers=[heads.LAYER]).notes
    assert note.startswith("Warning")
    assert message in note


NEVER_BELOW: dict[str, Callable[[], nn.Module]] = {
    "ReLU": lambda: ending(torch.relu),
    "lengths": lambda: Compared(lambda x, v: (x[:, None] * v).norm(dim=-1)),
    "squared distances": lambda: Compared(lambda x, v: torch.cdist(x, v) ** 2),
    "large squared distances": lambda: Compared(lambda x, v: (30 * torch.cdist(x, v)) ** 2),
    "distances of pairs": lambda: Compared(lambda x, v: torch.stack([functional.pairwise_distance(x, each) for each in v], 1)),
    "angles": lambda: Compared(lambda x, v: torch.arccos(0.99 * _cosine(x, v))),
    "evidence": lambda: ending(lambda z: functional.softplus(z) + 1),
}


@pytest.mark.parametrize("name", NEVER_BELOW)
def test_outputs_never_below_0_are_told(name: str) -> None:
    """Where nothing shows what they are: of distances the farthest class would be served."""
    net = NEVER_BELOW[name]().eval()
    (note,) = [each for each in backend(net, layers=[heads.LAYER]).notes if each.startswith("Warning")]
    assert "ever below 0, whatever its layers give: where they are distances" in note


SURE: dict[str, tuple[Function, str, int]] = {
    "of one, sure of 1": (lambda z: (z + 40).sigmoid(), "sigmoid", 1),
    "of one, sure of 0": (lambda z: (z - 40).sigmoid(), "sigmoid", 1),
    "of one, near 1": (lambda z: (z + 12).sigmoid(), "sigmoid", 1),
    "of one, above 0.9": (lambda z: (z + 4).sigmoid(), "sigmoid", 1),
    "labels": (lambda z: (z - 40).sigmoid(), "sigmoid", 5),
    "classes": (lambda z: (z + 40 * torch.eye(5)[3]).softmax(1), "softmax", 5),
    "of one, by hand": (lambda z: 1 / (1 + torch.exp(-z - 15)), "sigmoid", 1),
    "classes by hand": (lambda z: (e := (z + 20 * torch.eye(5)[3]).exp()) / e.sum(1, keepdim=True), "softmax", 5),
}


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "kind"), [*((name, "eager") for name in SURE), ("labels", "trace"), ("classes", "exported")])
def test_whoever_is_sure_on_all_trial_pictures_gives_probabilities(name: str, kind: str) -> None:
    """The same for all, as trained networks may: they were read as logits, and near 1 as logarithms."""
    function, ends, classes = SURE[name]
    net, given = ending(function, classes), heads.pictures()
    made = backend(nets.stored(net, kind, given), layers=[heads.LAYER])
    assert made.reader.ending == ends
    with torch.no_grad():
        own = net(given)
    found = made.reader.probabilities(made.capture.forward(given, ()).values)
    assert torch.equal(found[:, 1:] if classes == 1 else found, own)


def test_a_head_of_zeros_gives_logits() -> None:
    """It gives the same for all, too, and nothing tells what."""
    given = heads.pictures()
    assert find_ending(open_model(ending(lambda z: 0 * z), given), given) == Found()


LOGITS: dict[str, Callable[[], nn.Module]] = {
    "all negative": lambda: ending(lambda z: z - 50),
    "between 0 and 100": lambda: ending(lambda z: z + 50),
    "scaled cosines": lambda: Compared(lambda x, v: 30 * _cosine(x, v)),
    "soft cap": lambda: ending(lambda z: 30 * torch.tanh(z / 30)),
    "difference": lambda: Compared(lambda x, v: (x[:, None] - v).mean(-1)),
}


@pytest.mark.parametrize("make", LOGITS.values(), ids=LOGITS)
def test_logits_that_look_otherwise_stay_logits(make: Callable[[], nn.Module]) -> None:
    """Nothing is said of them."""
    made = backend(make().eval(), layers=[heads.LAYER])
    assert made.notes == ()
    assert made.reader.describe() == ""
