"""Networks of several members, whose scores are added up: each is explained at its own layer, and the maps are of them all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.comparison.alignment import MAX_DISTANCE, measure_alignment
from tests.support.models import nets
from tests.support.models.places import Ordered, Plain
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import Backend, open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain import methods

CPU = torch.device("cpu")
SIZE = (64, 64)
PICTURES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))


class Coarse(nn.Module):
    """Another architecture than `Plain`, with a map as large, or of other steps."""

    def __init__(self, steps: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 5, steps, 2), nn.ReLU(), nn.Conv2d(8, 24, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(24, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.trunk(x).mean((2, 3)))


class Ensemble(nn.Module):
    """Two members, of which each matters as much."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other
        with torch.no_grad():
            spreads = [float(each(PICTURES).std(0).mean()) for each in (one, other)]
        self.weight = spreads[0] / spreads[1]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.one(x) + self.weight * self.other(x)


def opened(model: object, **keys: object) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model, Config(channels_last=False, **keys), SIZE, CPU)  # type: ignore[arg-type]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["eager", "script", "trace", "exported", "exported for 3"])
def test_the_map_is_of_all_members_in_every_kind_of_archive(kind: str) -> None:
    """By the literal formula in float64, the channels of both layers beside each other; nothing goes past both."""
    plain = Ensemble(Plain(), Coarse())
    made = opened(nets.stored(plain, kind, torch.randn(3, 3, *SIZE)))
    (layer,) = made.layers
    names = layer.split(" + ")
    assert [name.split(".")[0] for name in names] == ["one", "other"]
    assert (made.bypass[layer] or 0) < 0.01
    assert made.doubts == {}
    captured = made.capture.forward(PICTURES, [layer])
    targets = captured.logits.argmax(1)
    maps = methods.gradcam_plus_plus(captured.activation(layer), captured.gradients(layer, torch.arange(2), targets))
    eager = ("one.body", "other.trunk")
    pairs = [nets.by_autograd(plain, name, PICTURES, targets)[1:] for name in eager]
    activations, slopes = (torch.cat([pair[which] for pair in pairs], 1).double() for which in (0, 1))
    for found, activation, slope in zip(maps.numpy(), activations, slopes, strict=True):
        wanted = oracle.gradcam_plus_plus(activation, slope, rectify_sum=True)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.mark.numeric
def test_members_of_other_kinds_and_sizes_lie_on_one_grid() -> None:
    """Tokens and a map, on the finer one's grid; each adds what it adds to the score."""
    model = Ensemble(Ordered(before=1), Coarse(4))
    made = opened(model)
    (layer,) = made.layers
    captured = made.capture.forward(PICTURES, [layer])
    targets = captured.logits.argmax(1)
    activation, gradient = captured.activation(layer), captured.gradients(layer, torch.arange(2), targets)
    assert activation.shape[1:] == gradient.shape[1:] == (16 + 24, 16, 16)
    assert made.aligned[layer].describe()["grid"] == [16, 16]
    _, output, slope = nets.by_autograd(model, "other.trunk", PICTURES, targets)
    assert torch.allclose(activation[:, 16:], output, atol=1e-6)
    assert torch.allclose(gradient[:, 16:], slope, atol=1e-6)
    found = measure_alignment(lambda x: made.capture.forward(x, [layer]).activation(layer), synthesize_pictures(SIZE, 3, seed=9))
    assert max(abs(found.down), abs(found.right)) <= MAX_DISTANCE


def test_members_may_be_asked_for_by_name() -> None:
    """Together, and one alone, which is warned of."""
    model = Ensemble(Plain(), Coarse())
    both = "one.body + other.trunk"
    made = opened(model, layers=(both, "other.trunk"))
    assert made.layers == (both, "other.trunk")
    assert list(made.doubts) == ["other.trunk"]
    captured = made.capture.forward(PICTURES, [both, "other.trunk"])
    assert torch.equal(captured.activation(both)[:, 16:], captured.activation("other.trunk"))


def test_layers_that_go_into_each_other_are_refused_together() -> None:
    """What passes through both would count twice."""
    model = Ensemble(Plain(), Coarse())
    with pytest.raises(ConfigError, match=r"one.stem and one.body cannot be explained together: the first goes into the second"):
        opened(model, layers=("one.stem + one.body",))
    with pytest.raises(ConfigError, match="layer nothing does not exist"):
        opened(model, layers=("one.stem + nothing",))


def test_a_network_of_one_member_keeps_its_layer() -> None:
    """Nothing is joined where nothing goes past the last map."""
    assert opened(Plain()).layers == ("body",)


class Levels(nn.Module):
    """The head sees two levels of one trunk: the finer goes into the coarser."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()
        self.fc = nn.Linear(16, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.plain(x) + 4 * self.fc(self.plain.stem(x).amax((2, 3)))


def test_levels_of_one_trunk_are_not_members() -> None:
    """One of them is explained, and what goes past it is said."""
    made = opened(Levels().eval())
    assert all(" + " not in layer or "stem" not in layer for layer in made.layers)


class Branches(nn.Module):
    """A stage, then branches that are joined without a module for it, as Inception's are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(12, 8, 4, 2, 1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(12, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(16, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.stem(x)
        return self.fc(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


def test_branches_are_taken_together_rather_than_the_stage_before_them() -> None:
    """The last branch alone leaves the others out, and the stem is of an earlier stage; their channels together are the trunk's."""
    made = opened(Branches().eval())
    assert made.layers == ("left + right",)
    assert made.bypass["left + right"] == pytest.approx(0, abs=1e-5)
    assert "2 members or branches" in made.why


class Deep(nn.Module):
    """A sum that every block adds to, outside of its modules, halved once: each block goes into all behind it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.blocks, self.tail = (nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(depth)) for _ in range(2))
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        x = self.down(x) + functional.avg_pool2d(x, 2)
        for block in self.tail:
            x = x + block(x).relu()
        return self.fc(x.mean((2, 3)))


def test_the_search_for_members_ends_where_all_go_into_one_sum() -> None:
    """Three passes for each of many layers that are no members would be minutes for a large network."""
    torch.manual_seed(0)
    model, passes = Deep(12).eval(), []
    model.register_forward_pre_hook(lambda _module, given: passes.append(len(given[0])))
    assert opened(model).layers == ("stem",)
    assert len(passes) <= 110


def test_what_earlier_layers_give_is_run_once_for_all_that_are_tried() -> None:
    """Past each layer of two streams of tokens goes the other, so all are tried: a sixth of a large network's minutes."""
    model, passes = Ensemble(Ordered(before=1), Ordered(before=2)), []
    model.register_forward_pre_hook(lambda _module, given: passes.append(len(given[0])))
    assert opened(model).layers == ("one.norm + other.norm",)
    assert len(passes) <= 149
