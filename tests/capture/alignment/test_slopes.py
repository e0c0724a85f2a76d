"""Networks in which every change of the picture changes all cells: their slopes tell where cells lie, or it is said that nothing does."""

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
from camserve.tools.packaging.models.advice import describe_layers

SIDE, GRID, CHANNELS = 64, 8, 16


class Maps(nn.Module):
    """Convolutions, of which the last two have 8 x 8 cells; what is between them is changed by `change`."""

    def __init__(self) -> None:
        super().__init__()
        steps = [
            nn.Sequential(nn.Conv2d(inside, CHANNELS, 3, stride, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
            for inside, stride in ((3, 4), (CHANNELS, 2), (CHANNELS, 1))
        ]
        self.first, self.second, self.third = steps
        self.fc = nn.Linear(CHANNELS, nets.CLASSES)
        self.key, self.value = nn.Linear(CHANNELS, 1), nn.Linear(CHANNELS, CHANNELS)
        self.walk = nn.GRU(CHANNELS, CHANNELS, batch_first=True)

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`, of pictures `[N, 3, H, W]`."""
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.third(self.change(self.second(self.first(x)), x)).mean((2, 3)))


def number_of(x: Tensor) -> list[int]:
    """A number for each picture, that any change of it alters."""
    numbers: list[int] = (x.flatten(1).double().sum(1) * 1e4).long().tolist()
    return numbers


class Rolled(Maps):
    """Rows and columns are shifted by an amount that any change of the picture alters."""

    def change(self, maps: Tensor, x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        rolled = [each.roll((n % GRID, n // GRID % GRID), (1, 2)) for each, n in zip(maps, number_of(x), strict=True)]
        return functional.group_norm(torch.stack(rolled), 1)


class Shuffled(Maps):
    """Cells in an order that any change of the picture alters."""

    def change(self, maps: Tensor, x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        orders = [torch.randperm(GRID**2, generator=torch.Generator().manual_seed(abs(n))) for n in number_of(x)]
        return torch.stack([each.flatten(1)[:, order].view_as(each) for each, order in zip(maps, orders, strict=True)])


class Sorted(Maps):
    """Columns in the order of their brightness."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        order = maps.mean((1, 2)).argsort(1)
        return functional.group_norm(maps.gather(3, order[:, None, None].expand_as(maps)), 1)


class Snake(Maps):
    """A recurrent network goes to and fro over the rows, and its states are laid out as they come."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        turned = [row.flip(2) if number % 2 else row for number, row in enumerate(maps.unbind(2))]
        states, _ = self.walk(torch.stack(turned, 2).flatten(2).transpose(1, 2))
        return states.transpose(1, 2).unflatten(2, (GRID, GRID))


class Filtered(Maps):
    """The real part of a Fourier transform over the cells, and nothing beside it."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        return torch.fft.fft2(functional.group_norm(maps, 1)).real


class Normed(Maps):
    """A group norm, over all cells, and a gate over all of them."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        maps = functional.group_norm(maps, 1)
        return maps * self.value(maps.mean((2, 3)))[:, :, None, None].sigmoid()


class Instance(Maps):
    """An instance norm."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        return functional.instance_norm(maps)


class Context(Maps):
    """What is attended to in all of the picture is added to each cell."""

    def change(self, maps: Tensor, _x: Tensor) -> Tensor:
        """`[N, C, 8, 8]`."""
        cells = maps.flatten(2).transpose(1, 2)
        seen = (self.key(cells).softmax(1) * cells).sum(1)
        return maps + 3 * self.value(seen)[:, :, None, None]


def opened(net: type[nn.Module], seed: int, kind: str = "eager") -> Backend:
    """A backend of the net with random weights and statistics; nothing is timed."""
    torch.manual_seed(seed)
    model = net().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean, part.running_var = 0.3 * torch.randn(CHANNELS), 0.5 + torch.rand(CHANNELS)
    taken = model if kind == "eager" else nets.stored(model, kind, torch.randn(2, 3, SIDE, SIDE))
    return open_backend(taken, Config(channels_last=None), (SIDE, SIDE), torch.device("cpu"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", [Rolled, Shuffled, Sorted])
def test_cells_that_lie_elsewhere_in_each_picture_are_refused(net: type[nn.Module], seed: int) -> None:
    """No probe tells: each changes all cells, or the order in which they lie."""
    with pytest.raises(ConfigError, match=r"^layer third cannot be explained: its cells lie in another order than any"):
        opened(net, seed)


@pytest.mark.parametrize("seed", range(3))
def test_cells_of_which_every_second_row_is_turned_are_refused_or_doubted(seed: int) -> None:
    """Half of the cells lie where they should, and a recurrent network's reach far: that it is said is the least."""
    try:
        made = opened(Snake, seed)
    except ConfigError as error:
        assert "its cells lie in another order than any" in str(error)  # noqa: PT017 either is right
    else:
        assert "no trial shows where its cells lie" in made.doubts["third"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", [Maps, Normed, Instance, Context])
def test_cells_that_see_everything_lie_where_they_do(net: type[nn.Module], seed: int) -> None:
    """Norms, gates and attention over all of the picture are no reason to refuse, or to doubt."""
    made = opened(net, seed)
    (aligned,) = made.aligned.values()
    assert aligned.told
    assert aligned.distance is not None
    assert aligned.distance <= 1.5
    assert "told" not in aligned.describe()
    assert made.doubts == {}


@pytest.mark.parametrize("kind", ["script", "exported"])
def test_slopes_tell_of_archives_too(kind: str) -> None:
    """Of cells turned to and fro, and of those that are not."""
    with pytest.raises(ConfigError, match="its cells lie in another order than any"):
        opened(Sorted, 0, kind)
    (aligned,) = opened(Normed, 0, kind).aligned.values()
    assert aligned.told


def test_what_nothing_tells_is_said() -> None:
    """By packaging, in the log and the metadata, and by the doctor, who reads it there: as a doubt."""
    made = opened(Filtered, 0)
    (aligned,) = made.aligned.values()
    assert not aligned.told
    assert aligned.describe()["told"] is False
    assert made.doubts == {"third": aligned.note}
    assert "no trial shows where its cells lie" in aligned.note
    assert f"Warning: layer third: {aligned.note}" in describe_layers(made)
