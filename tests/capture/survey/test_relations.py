"""Outputs that are made of each other: the class scores are served, and what no trial settles is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.models import heads, nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture.backend import Backend, open_backend
from camserve.capture.choose.output import choose_output
from camserve.capture.models.kinds import open_model
from camserve.capture.survey import relations
from camserve.core.config import Config
from camserve.core.errors import ConfigError

CLASSES = 7
Give = Callable[[Tensor], Any]


class Net(heads.Net):
    """Any outputs of the class scores `[N, 7]`."""

    def __init__(self, give: Give, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.confidence = nn.Linear(classes, 1)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        """What `give` makes of them."""
        return self.give(self.logits(self.features(x)))


def opened(model: Any, classes: int | None = None, **keys: Any) -> Backend:
    """A model as a worker opens it."""
    config = Config.from_mapping({"channels_last": False, **keys})
    return open_backend(model, config, (heads.SIDE, heads.SIDE), torch.device("cpu"), classes=classes)


def probabilities(made: Backend) -> Tensor:
    """What is answered for some pictures."""
    return made.reader.probabilities(made.capture.forward(heads.pictures(), ()).values)


def scores(net: Net) -> Tensor:
    """What the net's own scores are for them."""
    with torch.no_grad():
        return net.logits(net.features(heads.pictures()))


def entropy(z: Tensor) -> Tensor:
    """Of the classes' probabilities."""
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


SERVED: dict[str, tuple[Give, str]] = {
    "entropy [N]": (lambda z: (z, z.softmax(1), entropy(z)), "0"),
    "entropy [N, 1] first": (lambda z: (entropy(z)[:, None], z), "1"),
    "entropy without a gradient": (lambda z: (entropy(z.detach()), z), "1"),
    "entropy in bits": (lambda z: ((entropy(z) / torch.tensor(2.0).log()).detach(), z), "1"),
    "entropy of probabilities alone": (lambda z: (entropy(z).detach(), z.softmax(1)), "1"),
    "entropy as a share of the most": (lambda z: ((entropy(z) / torch.tensor(7.0).log()).detach(), z), "1"),
    "the sum of squares": (lambda z: (z.softmax(1).square().sum(1).detach(), z), "1"),
    "the largest probability": (lambda z: (z, z.softmax(1), z.softmax(1).amax(1)), "0"),
    "doubt": (lambda z: ((1 - z.softmax(1).amax(1)).detach(), z), "1"),
    "energy": (lambda z: {"class_logits": z, "energy": -z.logsumexp(1)}, "class_logits"),
    "a margin": (lambda z: (z.topk(2)[0].diff(dim=1).detach(), z), "1"),
    "any other value": (lambda z: (z.std(1), z), "1"),
    "the three largest": (lambda z: (z.topk(3)[0], z), "1"),
    "the three largest probabilities": (lambda z: (z.softmax(1).topk(3)[0], z), "1"),
    "one-hot": (lambda z: (functional.one_hot(z.argmax(1), CLASSES).float(), z), "1"),
    "the same softmax": (lambda z: (z - z.mean(1, keepdim=True), z), "0"),
    "logarithms of probabilities": (lambda z: (z.softmax(1), z.log_softmax(1)), "1"),
    "probabilities and the class": (lambda z: (z.softmax(1), z.argmax(1)), "0"),
}


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["no labels", "labels"])
@pytest.mark.parametrize(("give", "name"), SERVED.values(), ids=SERVED)
def test_what_is_made_of_the_scores_is_not_served(give: Give, name: str, classes: int | None) -> None:
    """The probabilities are the classes' own."""
    net = Net(give).eval()
    made = opened(net, classes)
    assert ".".join(map(str, made.reader.path or ())) == name
    torch.testing.assert_close(probabilities(made), scores(net).softmax(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["script", "trace", "exported"])
def test_what_is_made_of_the_scores_in_programs(kind: str) -> None:
    """Where autograd's graph is hidden, values tell."""

    class Told(heads.Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            z = self.fc(self.between(self.body(x).mean((2, 3))))
            return -torch.logsumexp(z, 1), z

    net = Told(CLASSES).eval()
    made = opened(nets.stored(net, kind, heads.pictures()))
    with torch.no_grad():
        wanted = net(heads.pictures())[1].softmax(1)
    torch.testing.assert_close(probabilities(made), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["no labels", "labels"])
@pytest.mark.parametrize(
    "give", [lambda z: (z, z.sigmoid()), lambda z: {"prob": z.sigmoid(), "logits": z}], ids=["0, 1", "named"]
)
def test_a_sigmoid_beside_its_logits_says_how_they_are_read(give: Give, classes: int | None) -> None:
    """Each label has its own probability."""
    net = Net(give).eval()
    made = opened(net, classes)
    assert (made.reader.kind, made.reader.ending) == ("sigmoid", "sigmoid")
    torch.testing.assert_close(probabilities(made), scores(net).sigmoid(), atol=1e-5, rtol=0)


REFUSED: dict[str, Give] = {
    "negatives": lambda z: (z, -z),
    "exponentials": lambda z: (z, z.exp()),
    "evidence": lambda z: {"z": z, "evidence": functional.softplus(z), "alpha": functional.softplus(z) + 1},
    "divided": lambda z: (z, z / 3),
    "divided first": lambda z: (z / 3, z),
    "divided before a softmax": lambda z: (z, (z / 3).softmax(1)),
    "without a gradient": lambda z: (z, -z.detach()),
    "rectified": lambda z: (z, z.relu()),
    "both kinds of probabilities": lambda z: (z, z.softmax(1), z.sigmoid()),
}


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["no labels", "labels"])
@pytest.mark.parametrize("give", REFUSED.values(), ids=REFUSED)
def test_functions_of_each_other_are_refused(give: Give, classes: int | None) -> None:
    """With what came, and what says which is meant."""
    with pytest.raises(ConfigError, match=r"is made of .*the model gives .*\[2, 7\].*say which \(--output [01z]") as raised:
        opened(Net(give).eval(), classes)
    assert "nothing tells which of them are the class scores" in str(raised.value)


def test_the_configuration_says_which() -> None:
    """Then it is served, whatever it is."""
    net = Net(lambda z: (z, -z)).eval()
    for output, sign in ((0, 1), (1, -1)):
        torch.testing.assert_close(probabilities(opened(net, output=output)), (sign * scores(net)).softmax(1), atol=1e-5, rtol=0)


def test_a_value_that_weights_make_of_the_scores() -> None:
    """It may be how sure the model is of them, or the scores an embedding: labels tell."""
    net = Net(lambda z: z)
    net.give = lambda z: (z, net.confidence(z))
    with pytest.raises(ConfigError, match=r"1 is made of 0, .*0 \[2, 7\] and 1 \[2, 1\]"):
        opened(net.eval())
    torch.testing.assert_close(probabilities(opened(net, CLASSES)), scores(net).softmax(1), atol=1e-5, rtol=0)
    assert opened(net, 2).reader.path == (1,)


class Features(heads.Net):
    """Features, and scores of them."""

    def forward(self, x: Tensor) -> Any:
        """`[N, 8]` and `[N, classes]`."""
        features = self.features(x)
        return features, self.logits(features)


@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
@pytest.mark.parametrize("classes", [1, 8])
def test_features_are_not_the_scores(classes: int, deep: bool) -> None:
    """Also where these are one logit, or as many as there are features."""
    made = opened(Features(classes, deep).eval())
    assert made.reader.path == (1,)
    assert made.reader.binary is (classes == 1)


class Made(heads.Net):
    """Features, and what a function without weights makes of them."""

    def __init__(self, make: Give) -> None:
        super().__init__(4)
        self.unused = nn.Linear(8, 8)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        """`[N, 8]` and what it makes."""
        features = self.features(x)
        return features, self.make(features)


def test_scores_that_no_weights_make() -> None:
    """The best of each class's features; in the features' own number, or as one value, nothing tells them from features."""
    assert opened(Made(lambda f: f.unflatten(1, (4, 2)).amax(2)).eval()).reader.path == (1,)
    for make in (torch.exp, lambda f: f.std(1)):
        with pytest.raises(ConfigError, match="1 is made of 0"):
            opened(Made(make).eval())


def test_parts_of_one_tensor_are_not_made_of_each_other() -> None:
    """Though one operation gives both."""
    one, other = torch.randn(2, 6, requires_grad=True).tanh().chunk(2, 1)
    assert relations.find_link(one, other.exp()) == ""
    assert relations.find_link(other, other.exp()) == "fixed"


def test_scores_that_something_is_added_to() -> None:
    """The sum is served, as the model went on with it."""

    class Refined(heads.Net):
        def forward(self, x: Tensor) -> Any:
            features = self.features(x)
            first = self.logits(features)
            return first, first + self.logits(features.sqrt())

    assert opened(Refined(CLASSES).eval()).reader.path == (1,)


SORTED: dict[str, Give] = {
    "topk": lambda z: z.topk(CLASSES),
    "the best five": lambda z: z.topk(5),
    "of probabilities": lambda z: z.softmax(1).topk(5),
    "sorted": lambda z: z.sort(1, descending=True)[0],
    "upwards": lambda z: z.sort(1)[0],
}


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["no labels", "labels"])
@pytest.mark.parametrize("give", SORTED.values(), ids=SORTED)
def test_scores_in_order_of_size_are_refused(give: Give, classes: int | None) -> None:
    """The same class would be the first in every picture."""
    with pytest.raises(ConfigError, match=r"in order of size \(a topk or a sort\).*in the classes' own order"):
        opened(Net(give).eval(), classes)


def test_scores_that_lie_in_order_by_chance_are_served() -> None:
    """Only what a sort gives is sorted."""
    net = heads.Net(3).eval()
    net.fc.bias.data = torch.tensor([90.0, 50.0, 10.0])
    assert opened(net).outputs == 3


@pytest.mark.parametrize("classes", [None, 2], ids=["no labels", "labels"])
def test_the_best_score_beside_its_class_is_refused(classes: int | None) -> None:
    """It is no logit of two classes."""
    with pytest.raises(ConfigError, match=r"beside 0, .* the model gives 1 \[2\], .*return all class scores.*\(--output 0\)"):
        opened(Net(lambda z: z.softmax(1).max(1)).eval(), classes)


def test_the_better_of_two_scores_beside_its_class_is_refused() -> None:
    """Also where it is the second in all pictures, and its probability above a half, as it would be of a decision."""
    net = Net(lambda z: z.softmax(1).max(1), classes=2).eval()
    net.fc.bias.data += torch.tensor([-50.0, 50.0])
    with pytest.raises(ConfigError, match="beside 0, one value a picture"):
        opened(net)


def test_a_logit_beside_numbers_that_are_no_decision_is_refused() -> None:
    """Of more than two classes, for instance."""
    with pytest.raises(ConfigError, match="beside 0, one value a picture"):
        opened(Net(lambda z: (z, torch.full((len(z),), 4)), classes=1).eval())


def test_a_probability_beside_its_own_decision_is_served() -> None:
    """That is the second of two classes, from one logit or from two."""
    net = Net(lambda z: (z.sigmoid(), (z > 0).long()), classes=1).eval()
    made = opened(net)
    assert (made.reader.path, made.outputs) == ((0,), 2)
    torch.testing.assert_close(probabilities(made)[:, 1:], scores(net).sigmoid(), atol=1e-5, rtol=0)
    net = Net(lambda z: (z.softmax(1)[:, 1], z.argmax(1)), classes=2).eval()
    torch.testing.assert_close(probabilities(opened(net)), scores(net).softmax(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("give", "passes"), [(lambda z: (z, entropy(z).detach()), 1), (lambda z: (z, z.std(1)), 2)])
def test_no_pass_is_run_that_tells_nothing_more(give: Give, passes: int) -> None:
    """One of values; a second with gradients where they leave it open."""
    counted: list[int] = []

    def count(z: Tensor) -> Any:
        counted.append(1)
        return give(z)

    model = open_model(Net(count).eval(), heads.pictures())
    counted.clear()
    assert choose_output(model, heads.pictures()).width == CLASSES
    assert len(counted) == passes
