"""A trunk that runs over several views of the picture: every call counts, at its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.support.comparison import oracle
from tests.support.models import nets
from tests.support.models.places import Change, Ordered, Plain, Viewing
from torch import Tensor, nn

from camserve.capture import Backend, open_backend
from camserve.capture.models.views import join_views
from camserve.capture.survey.layers import View
from camserve.capture.survey.layout import Layout
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain import methods

CPU = torch.device("cpu")
SIZE = (64, 64)
PICTURES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))


def opened(model: object, **keys: object) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model, Config(channels_last=False, **keys), SIZE, CPU)  # type: ignore[arg-type]


class Flips(nn.Module):
    """Both halves of a mirrored pair, which TorchScript and `torch.export` can take."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return (self.model(x) + self.model(x.flip(3))) / 2


def literal_maps(model: nn.Module, layer: str, turns: Sequence[Change], targets: Tensor) -> list[np.ndarray]:
    """By the literal formula in float64: each call's channels beside the others', turned to lie as the picture."""
    calls = [nets.by_autograd(model, layer, PICTURES, targets, call)[1:] for call in range(len(turns))]
    activations, gradients = (
        torch.cat([turn(call[which]) for turn, call in zip(turns, calls, strict=True)], 1).double() for which in (0, 1)
    )
    return [oracle.gradcam_plus_plus(*each, rectify_sum=True) for each in zip(activations, gradients, strict=True)]


def maps_of(made: Backend, layer: str) -> tuple[Tensor, Tensor]:
    """Grad-CAM++ maps of the most probable classes, and these."""
    captured = made.capture.forward(PICTURES, [layer])
    targets = captured.logits.argmax(1)
    return methods.gradcam_plus_plus(captured.activation(layer), captured.gradients(layer, torch.arange(2), targets)), targets


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["eager", "script", "trace", "exported", "exported for 3"])
def test_a_mirrored_pair_is_added_up_in_every_kind_of_archive(kind: str) -> None:
    """Neither the map of the mirrored picture nor one half alone."""
    plain = Flips().eval()
    made = opened(nets.stored(plain, kind, torch.randn(3, 3, *SIZE)), layers=("model.body",))
    maps, targets = maps_of(made, "model.body")
    for found, wanted in zip(
        maps.numpy(), literal_maps(plain, "model.body", [lambda x: x, lambda x: x.flip(3)], targets), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())
    assert "its 2 calls see the picture each for itself" in made.aligned["model.body"].note
    assert made.closed_form == ()


@pytest.mark.numeric
@pytest.mark.parametrize(
    "turns",
    [
        [lambda x: x.flip(3), lambda x: x],
        [lambda x: x, lambda x: x.flip(2), lambda x: x.flip(2, 3)],
        [lambda x: x, lambda x: x.transpose(2, 3)],
    ],
    ids=["mirrored first", "three", "transposed"],
)
def test_turned_views_are_turned_back(turns: list[Change]) -> None:
    """In any order, and any number."""
    model = Viewing(Plain(), turns)
    maps, targets = maps_of(opened(model, layers=("model.body",)), "model.body")
    for found, wanted in zip(maps.numpy(), literal_maps(model, "model.body", turns, targets), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.mark.numeric
def test_views_of_a_transformer() -> None:
    """Tokens are turned as maps are, each call with its own other tokens left out."""
    model = Viewing(Ordered(before=1), [lambda x: x, lambda x: x.flip(3)])
    made = opened(model)
    (layer,) = made.layers
    captured = made.capture.forward(PICTURES, [layer])
    single = opened(Ordered(before=1), layers=(layer.removeprefix("model."),))
    expected = [
        single.capture.forward(view, list(single.layers)).activation(single.layers[0]) for view in (PICTURES, PICTURES.flip(3))
    ]
    assert torch.allclose(captured.activation(layer), torch.cat([expected[0], expected[1].flip(3)], 1), atol=1e-5)


def test_crops_and_scales_lie_where_they_were_taken() -> None:
    """What only one crop shows lights up there: each of five crops, and a larger picture, adds to its part of the map."""
    crops: list[Change] = [
        lambda x: x[:, :, :48, :48],
        lambda x: x[:, :, 16:, :48],
        lambda x: x[:, :, :48, 16:],
        lambda x: x[:, :, 16:, 16:],
        lambda x: nn.functional.interpolate(x, scale_factor=1.5),
    ]
    made = opened(Viewing(Plain(), crops), layers=("model.body",))
    site = made.aligned["model.body"].site
    spans = [(view.rows, view.columns) for view in site.views]
    low, high, whole = (0.0, 0.75), (0.25, 1.0), (0.0, 1.0)
    for found, wanted in zip(spans, [(low, low), (high, low), (low, high), (high, high), (whole, whole)], strict=True):
        assert np.allclose(found, wanted, atol=0.06)
    captured = made.capture.forward(PICTURES, ["model.body"])
    activation = captured.activation("model.body")
    assert activation.shape == (2, 5 * 16, 12, 12)
    first = activation[:, :16]
    assert first[:, :, :8, :8].any()
    assert not first[:, :, 10:].any()
    assert not first[:, :, :, 10:].any()


def test_a_share_of_the_gradient_goes_to_each_cell_that_a_coarse_one_becomes() -> None:
    """A view's contribution to the score, the sum of gradient times activation, stays what it was."""
    views = (View(1, Layout("nchw", 4, 4, 1)), View(2, Layout("nchw", 8, 8, 1)))
    even = [torch.full((1, 1, side, side), 2.0) for side in (4, 8)]
    activations, gradients = join_views(views, even), join_views(views, even, sums=True)
    assert activations.shape == gradients.shape == (1, 2, 8, 8)
    assert (activations * gradients).sum((2, 3))[0].tolist() == pytest.approx([4 * 16, 4 * 64])


class Again(nn.Module):
    """A block whose output goes into itself: the second call is the layer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.stem(x)
        x = x + self.block(x)
        return self.fc((x + self.block(x)).mean((2, 3)))


def test_a_block_that_is_repeated_is_taken_at_its_last_call() -> None:
    """Its calls are no views: one goes into the other."""
    made = opened(Again().eval(), layers=("block",))
    assert made.aligned["block"].site.views == ()
    assert made.aligned["block"].site.calls == 2


class Shuffling(nn.Module):
    """A trunk over the picture, and over its rows in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()
        self.order = torch.randperm(64, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.model(x) + self.model(x[:, :, self.order])


def test_views_that_no_trial_tells_are_refused() -> None:
    """Rows in another order: the map of that call could not be put back."""
    with pytest.raises(ConfigError, match=r"it runs 2 times, each time on another view .* what call 2 sees; take the views out"):
        opened(Shuffling().eval(), layers=("model.body",))


class Joined(nn.Module):
    """Two views as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        one, other = self.model(torch.cat([x, x.flip(3)])).chunk(2)
        return one + other


def test_views_that_are_joined_to_a_batch_are_refused_with_a_way_out() -> None:
    """Nothing tells which of the batch's pictures is which view of which."""
    with pytest.raises(ConfigError, match=r"its layers run on 2 pictures for each one .*: let it run once for each view"):
        opened(Joined().eval())
