"""Networks of random layers, of which the arithmetic of receptive fields says where cells lie: no map is out of place without a word."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn

from camserve.capture import open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

LEAST = 4
"""Fewest rows and columns of a map."""

NEAR = 0.65
"""Cells, by which a map's cell may lie from its place: laid anew are those that are 0.6 off, and 0.05 is for rounding."""


NORMS: list[Callable[[int], nn.Module]] = [
    nn.BatchNorm2d,
    nn.BatchNorm2d,
    lambda width: nn.GroupNorm(2, width),
    nn.InstanceNorm2d,
]


MANY = 200


class Block(nn.Module):
    """Two convolutions, with a gate over all cells or without, and a shortcut."""

    def __init__(self, width: int, side: int, *, gate: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, side, padding=side // 2) for _ in range(2))
        self.norm, self.gate = nn.BatchNorm2d(width), nn.Linear(width, width) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]`, twice."""
        inner = self.second(self.norm(self.first(x)).relu())
        return (x + (inner if self.gate is None else inner * self.gate(inner.mean((2, 3)))[:, :, None, None].sigmoid())).relu()


class Cut(nn.Module):
    """Leaves rows and columns out."""

    def __init__(self, top: int, bottom: int, left: int, right: int) -> None:
        super().__init__()
        self.sides = top, bottom, left, right

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]` to `[N, C, fewer, fewer]`."""
        top, bottom, left, right = self.sides
        return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


@dataclass
class Axis:
    """Where cells lie: the first's middle, in pixels from the edge, the step from one to the next, and how many there are."""

    count: int
    start: float = 0.5
    step: float = 1.0

    def pass_kernel(self, side: int, stride: int, border: int, dilation: int = 1) -> None:
        """Go through a convolution, or a pooling."""
        self.start += self.step * (dilation * (side - 1) / 2 - border)
        self.step *= stride
        self.count = (self.count + 2 * border - dilation * (side - 1) - 1) // stride + 1

    def cut(self, before: int, behind: int) -> None:
        """Leave cells out at either end."""
        self.start += self.step * before
        self.count -= before + behind

    def find_off(self, span: tuple[float, float], side: int) -> float:
        """Return how far, in cells, a map that lies over this part of `side` pixels has a cell out of place."""
        shown = ((span[0] + (span[1] - span[0]) * (cell + 0.5) / self.count) * side for cell in (0, self.count - 1))
        true = (self.start + self.step * cell for cell in (0, self.count - 1))
        return max(abs(one - other) * self.count / side for one, other in zip(shown, true, strict=True))


@dataclass
class Drawn:
    """A trunk of layers drawn by chance."""

    seed: int
    parts: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        torch.manual_seed(self.seed)
        self.side, self.width = self.chance.choice([32, 48, 64, 96]), self.chance.choice([8, 16, 24])
        self.axes = Axis(self.side), Axis(self.side)
        self.borders = self.chance.choice(["same", "same", "none", "mixed"])
        self.norm = self.chance.choice(NORMS)
        self._draw(self.chance.randint(LEAST, 16), cuts=self.chance.random() < 0.5)

    @property
    def fewest(self) -> int:
        """Rows or columns."""
        return min(axis.count for axis in self.axes)

    def _draw(self, last: int, *, cuts: bool) -> None:
        self._convolve(self.chance.choice([3, 4, 5, 7]), self.chance.choice([1, 2, 4]), 3)
        while self.fewest > last and len(self.parts) < 60:
            kind = self.chance.choice(["convolve", "convolve", "halve", "pool", "block"])
            if kind == "convolve":
                self._convolve(self.chance.choice([1, 3, 3, 5, 7]), 1, self.width, self.chance.choice([1, 1, 1, 2]))
            elif kind == "halve":
                self._convolve(self.chance.choice([1, 2, 3, 4, 5]), 2, self.width)
            elif kind == "pool" and self.fewest >= 2 * LEAST:
                side = self.chance.choice([2, 3])
                border = side // 3 if self.borders == "same" else 0
                self.parts.append(self.chance.choice([nn.MaxPool2d, nn.AvgPool2d])(side, 2, border))
                self._pass(side, 2, border)
            elif kind == "block":
                self.parts.append(Block(self.width, self.chance.choice([3, 3, 5]), gate=self.chance.random() < 0.5))
        room = self.fewest - LEAST
        if cuts and room > 0:
            sides = [self.chance.randint(0, room // 2) for _ in range(4)]
            self.parts.append(Cut(*sides))
            self.axes[0].cut(*sides[:2])
            self.axes[1].cut(*sides[2:])
        self._convolve(3, 1, self.width, border=1)

    def _convolve(self, side: int, stride: int, inside: int, dilation: int = 1, border: int | None = None) -> None:
        """Add a convolution, unless it left too little."""
        wide = dilation * (side - 1)
        if border is None:
            border = {"same": wide // 2, "none": 0, "mixed": self.chance.choice([0, wide // 2])}[self.borders]
        if (self.fewest + 2 * border - wide - 1) // stride + 1 < LEAST:
            return
        self.parts += [nn.Conv2d(inside, self.width, side, stride, border, dilation), self.norm(self.width), nn.ReLU()]
        self._pass(side, stride, border, dilation)

    def _pass(self, side: int, stride: int, border: int, dilation: int = 1) -> None:
        for axis in self.axes:
            axis.pass_kernel(side, stride, border, dilation)


class Net(nn.Module):
    """A trunk, pooling and one linear layer."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(*drawn.parts), nn.Linear(drawn.width, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.body(x).mean((2, 3)))


def find_off(seed: int) -> tuple[float, float | None]:
    """How far out of place a network's map is over all of the picture, and how far it is; None: it is refused, or doubted."""
    drawn = Drawn(seed)
    model = Net(drawn).eval()
    with torch.no_grad():
        assert model.body(torch.zeros(1, 3, drawn.side, drawn.side)).shape[2:] == tuple(axis.count for axis in drawn.axes)
    plain = max(axis.find_off((0, 1), drawn.side) for axis in drawn.axes)
    try:
        made = open_backend(model, Config(layers=("body",), channels_last=False), (drawn.side, drawn.side), torch.device("cpu"))
    except ConfigError:
        return plain, None
    aligned = made.aligned["body"]
    spans = (aligned.site.views[0].rows, aligned.site.views[0].columns) if aligned.site.views else ((0, 1), (0, 1))
    off = max(axis.find_off(span, drawn.side) for axis, span in zip(drawn.axes, spans, strict=True))
    return plain, off if aligned.told else None


@pytest.mark.parametrize("seed", range(12))
def test_a_map_lies_where_its_network_looks(seed: int) -> None:
    """Or it is refused, or doubted."""
    assert (find_off(seed)[1] or 0) <= NEAR


@pytest.mark.slow
def test_few_maps_of_many_networks_are_out_of_place_without_a_word() -> None:
    """Those of kernels that are wider than the maps that they look at, where nothing shows how far they reach."""
    found = [find_off(seed) for seed in range(MANY)]
    assert sum(plain > NEAR for plain, _ in found) >= MANY / 4
    assert sum((off or 0) > NEAR for _, off in found) <= MANY / 100
