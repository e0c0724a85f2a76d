"""Which layers a model has, and which of them the rule takes: the last map that still decides the prediction."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import nets
from tests.support.models.surveys import default_layer, survey
from torch import Tensor, nn

from camserve.capture import synthesize_pictures
from camserve.capture.choose.layer import INDEPENDENT, ONE_CELL, SCORES, find_faults
from camserve.capture.models.kinds import open_model
from camserve.capture.survey.layers import Survey
from camserve.core.errors import ConfigError

PICTURES = synthesize_pictures((nets.SIDE, nets.SIDE))


class Net(nn.Module):
    """A trunk and a head."""

    def __init__(self, head: nn.Module, channels: int = 6) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.ReLU())
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to class scores."""
        return self.head(self.trunk(x))


class Mean(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]` to `[N, C]`."""
        return x.mean((2, 3))


def names(found: Survey) -> list[str]:
    """The layers with a map."""
    return [info.name for info in found.maps]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pooled", "features"),
        ("deep", "relu"),
        ("functional", "body"),
        ("tokens", "blocks.1.norm"),
        ("attending", "layers.1.norm"),
        ("last", "norm"),
        ("sequence", "mix"),
        ("twice", "squeeze"),
    ],
)
@pytest.mark.parametrize("kind", ["eager", "script", "trace", "exported"])
def test_every_kind_gets_the_same_default_layer(name: str, expected: str, kind: str) -> None:
    """The last map before pooling; not what only permutes it, and not where only the class token is read."""
    layer, why = default_layer(nets.loaded(name, kind), PICTURES)
    assert layer == expected
    assert why.startswith("the last of")


@pytest.mark.parametrize("name", ["pooled", "twice", "tokens", "last"])
def test_every_kind_sees_the_same_layers(name: str) -> None:
    """The same names, shapes, classes, numbers of calls and signs, and what only passes on, in every kind."""
    plain = {info.name: info for info in survey(nets.loaded(name, "eager"), PICTURES).layers}
    for kind in ("script", "trace", "exported"):
        found = {info.name: info for info in survey(nets.loaded(name, kind), PICTURES).layers}
        assert set(plain) <= set(found)
        assert set(found) - set(plain) <= {"pool_input"}
        for layer, info in plain.items():
            assert info == found[layer]


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Dropout(), nn.Identity(), Mean(), nn.Linear(6, 5)),
        nn.Sequential(nn.AdaptiveAvgPool2d(4), Mean(), nn.Linear(6, 5)),
        nn.Sequential(nn.AvgPool2d(2), Mean(), nn.Linear(6, 5)),
        nn.Sequential(nn.Conv2d(6, 5, 1), Mean()),
        nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    ids=["dropout", "pool to 4x4", "average pool", "class scores", "class scores behind a ReLU"],
)
def test_what_only_passes_on_or_scores_classes_is_skipped(head: nn.Module) -> None:
    """Dropout, identities, pooling and maps of class scores are not what is explained."""
    assert default_layer(Net(head), PICTURES)[0] == "trunk"


def test_as_many_channels_as_classes_is_no_map_of_class_scores() -> None:
    """A layer is skipped for what its channels do, not for their number."""
    assert default_layer(Net(nn.Sequential(Mean(), nn.Linear(5, 5)), channels=5), PICTURES)[0] == "trunk"


def test_an_untrained_head_of_zeros_hides_nothing() -> None:
    """The rule looks at what the scores are computed from, not at how large its effect is."""
    head = nn.Sequential(Mean(), nn.Linear(6, 5))
    nn.init.zeros_(head.get_parameter("1.weight"))
    assert default_layer(Net(head), PICTURES)[0] == "trunk"


class Apart(nn.Module):
    """A branch that the scores do not use, a token that alone is read, and a map of class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 8)
        self.unused = nn.Conv2d(6, 6, 1)
        self.norm = nn.LayerNorm(6)
        self.scores = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.conv(x)
        self.unused(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return self.scores(tokens)[:, 0] if self.read_first else self.scores(tokens).mean(1)

    read_first = False


def test_why_a_layer_cannot_be_explained() -> None:
    """Each fault by its own name."""
    model = Apart()
    classifier = open_model(model, PICTURES)
    found = classifier.survey(PICTURES)
    assert find_faults(classifier, PICTURES, found.maps, 5) == {"unused": INDEPENDENT, "scores": SCORES}
    model.read_first = True
    assert find_faults(classifier, PICTURES, found.maps, 5) == {
        "unused": INDEPENDENT,
        "conv": ONE_CELL,
        "norm": ONE_CELL,
        "scores": ONE_CELL,
    }
    with pytest.raises(ConfigError, match="no layer with a spatial map that its prediction depends on"):
        default_layer(model, PICTURES)


def test_a_model_without_maps_is_refused() -> None:
    """There is nothing to explain in a multilayer perceptron."""
    with pytest.raises(ConfigError, match="this model has no layer with a spatial map"):
        default_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), PICTURES)


def test_a_layer_that_is_not_there_is_named_with_those_that_are() -> None:
    """A typing error, a layer without a map, and one that never runs: the message names the nearest that have one."""
    found = survey(nets.loaded("pooled", "eager"), PICTURES)
    assert names(found) == ["stem.0", "stem.1", "stem.2", "stem", "features.0", "features.1", "features"]
    with pytest.raises(ConfigError, match=r"layer Features\.2 does not exist, or does not run; layers with a map: features\.1"):
        found.site("Features.2")
    with pytest.raises(ConfigError, match=r"layer fc has no spatial map: its output has the shape \[2, 5\]; layers with a map:"):
        found.site("fc")


def test_a_shared_module_is_described_by_its_last_call() -> None:
    """Shape, calls and order are those of the last call."""
    found = {info.name: info for info in survey(nets.loaded("twice", "eager"), PICTURES).layers}
    assert (found["act"].calls, found["act"].shape) == (2, (2, 6, 8, 8))
    assert list(found).index("act") > list(found).index("second")
    assert (found["first"].signed, found["act"].signed) == (True, False)


@pytest.mark.parametrize("count", [2, 5])
def test_the_survey_leaves_the_model_as_it_was(count: int) -> None:
    """No hooks stay, and the scores are the same."""
    model = nets.Deep().eval()
    pictures = nets.pictures(count)
    with torch.no_grad():
        before = model(pictures)
        survey(model, pictures)
        assert torch.equal(model(pictures), before)
    assert not any(module._forward_hooks for module in model.modules())


class Unit(nn.Module):
    """A convolution and an activation that another unit uses too."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, 2, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to a map of half its sides."""
        return self.act(self.conv(x))


class Sharing(nn.Module):
    """Units with one activation module, as YOLO's: it is a part of the first."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.units = nn.Sequential(Unit(3, act), Unit(6, act))
        self.last = Unit(6, act)
        self.fc = nn.Linear(6, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.last(self.units(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["eager", "script", "trace"])
def test_a_shared_activation_lends_no_name(kind: str) -> None:
    """The last map is that of the unit that runs once, not of the first unit's activation; of equal maps."""
    torch.manual_seed(0)
    model = nets.stored(Sharing().eval(), kind, nets.pictures(2))
    layer, why = default_layer(model, nets.pictures(2))
    assert layer == "last"
    assert "calls" not in why
