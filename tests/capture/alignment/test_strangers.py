"""Networks that move, sort or gather what they see: a map of theirs would lie out of place, so it is refused, or an earlier is taken."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_backend
from camserve.capture.backend import Backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError

SIDE = 64


def conv(inside: int, outside: int, stride: int) -> nn.Sequential:
    """A convolution of 3 x 3, a norm and a ReLU."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


class Moved(nn.Module):
    """Two convolutions; what is between them, or before, is moved by `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 16, 4), conv(16, 16, 2), conv(16, 16, 1)
        self.fc = nn.Linear(16, nets.CLASSES)

    def score(self, x: Tensor) -> Tensor:
        """`[N, 16, h, w]` to `[N, CLASSES]`."""
        return self.fc(x.mean((2, 3)))


class Rolled(Moved):
    """Rows and columns are shifted, around the edge, and never shifted back, as a window's might be."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.score(self.second(self.first(x).roll((4, 4), (2, 3))))


class Tiled(Moved):
    """The quarters of the picture run as one batch, and are put together with two of them exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        half = x.shape[2] // 2
        quarters = [part for rows in x.split(half, 2) for part in rows.split(half, 3)]
        one, two, three, four = self.second(self.first(torch.cat(quarters))).chunk(4)
        return self.score(self.third(torch.cat([torch.cat([one, three], 3), torch.cat([two, four], 3)], 2)))


class Glancing(Moved):
    """A coarse map tells which quarter is looked at: another one in each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = conv(3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        cells = self.coarse(x).sum(1).flatten(1).argmax(1).tolist()
        parts = [
            each[:, 4 * (cell // 8) : 4 * (cell // 8) + 32, 4 * (cell % 8) : 4 * (cell % 8) + 32]
            for each, cell in zip(x, cells, strict=True)
        ]
        return self.score(self.second(self.first(torch.stack(parts))))


class Symmetric(Moved):
    """A map and its mirror image are added up: what is on the left counts as what is on the right."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        first = self.first(x)
        return self.score(self.third(self.second(first + first.flip(self.axes) if self.axes else first)))


class Mix(nn.Module):
    """What each vector becomes by itself, added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, 16]`, twice."""
        return x + self.inner(x)


class Latents(nn.Module):
    """Sixteen learnt vectors that gather from all of the picture, three times, as many as a grid of 4 x 4 has cells (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.latents = conv(3, 16, 8), nn.Parameter(torch.randn(1, 16, 16))
        self.query, self.both, self.norm = nn.Linear(16, 16), nn.Linear(16, 32), nn.LayerNorm(16)
        self.mix, self.fc = Mix(), nn.Linear(16, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        seen = self.trunk(x).flatten(2).transpose(1, 2)
        latents = self.latents.expand(len(x), -1, -1)
        for _ in range(3):
            key, value = self.both(self.norm(seen)).chunk(2, -1)
            latents = latents + functional.softmax(self.query(latents) @ key.transpose(1, 2), -1) @ value
            latents = self.mix(latents)
        return self.fc(latents.mean(1))


def opened(model: nn.Module, *layers: str, side: int = SIDE) -> Backend:
    """A backend of the net with random weights and statistics; nothing is timed."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean, part.running_var = 0.3 * torch.randn(part.num_features), 0.5 + torch.rand(part.num_features)
    return open_backend(model.eval(), Config(layers=layers, channels_last=None), (side, side), torch.device("cpu"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("net", "why"),
    [
        (Rolled, "its cells lie in another order than any that is known"),
        (Tiled, "its cells lie in another order than any that is known"),
        (Glancing, "(patches of the picture, changed, change nothing of it|or elsewhere in each picture)"),
    ],
)
def test_what_lies_elsewhere_is_refused(net: type[nn.Module], why: str, seed: int) -> None:
    """By the layer's own changes, whatever an early map shows."""
    torch.manual_seed(seed)
    with pytest.raises(ConfigError, match=why):
        opened(net())


def test_before_it_is_moved_a_layer_is_explained() -> None:
    """By name."""
    torch.manual_seed(1)
    assert opened(Rolled(), "first").layers == ("first",)


SILENT = {((3,), 64): (4, 5, 14), ((2,), 64): (32, 51, 58), ((2, 3), 64): (1, 12, 15), ((2, 3), 128): (0, 2, 12)}
"""By axes and the pictures' side, seeds with which the other trials placed such a map, and told no doubt."""


@pytest.mark.parametrize(("axes", "side", "seed"), [(*key, seed) for key, seeds in SILENT.items() for seed in (*seeds, 99)])
def test_cells_that_look_at_two_places_are_doubted_or_refused(axes: tuple[int, ...], side: int, seed: int) -> None:
    """By chance the one or the other is the stronger one, and the map was called mirrored."""
    torch.manual_seed(seed)
    try:
        (aligned,) = opened(Symmetric(*axes), "third", side=side).aligned.values()
        said = "" if aligned.told else aligned.note
    except ConfigError as error:
        said = str(error)
    assert any(words in said for words in ("its cells lie in another order", "looks at two places", "on several places"))
    torch.manual_seed(seed)
    (plain,) = opened(Symmetric(), "third", side=side).aligned.values()
    assert plain.told


@pytest.mark.parametrize("seed", range(3))
def test_latents_are_no_cells(seed: int) -> None:
    """The last layer whose cells a trial finds is taken, if nothing goes past it; the other is explained by name, and doubted."""
    torch.manual_seed(seed)
    model = Latents()
    backend = opened(model)
    assert backend.layers == ("trunk",)
    assert (backend.bypass["trunk"] or 0) < 1e-5
    told = backend.aligned["trunk"]
    assert told.told
    assert told.distance is not None
    assert told.distance <= 1
    assert "are no cells" in backend.why
    named = opened(model, "mix")
    assert not named.aligned["mix"].told
    assert "no trial shows where" in named.aligned["mix"].note
