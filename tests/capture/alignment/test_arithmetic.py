"""Networks of random layers, of which arithmetic says where cells lie: no map is out of place without a word."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import pytest
import torch
from tests.support.models import heads, nets
from torch import Tensor, nn
from torch.nn import functional

from camserve.capture import open_backend
from camserve.capture.survey.layers import View
from camserve.capture.survey.layout import UPRIGHT, Layout, is_proportional
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

LEAST = 4
"""Fewest rows and columns of a map."""

NEAR = 0.65
"""Cells, by which a map's cell may lie from its place: laid anew are those that are 0.6 off, and 0.05 is for rounding."""

COARSE = 12
"""Maps of fewer cells are neither resized, as ends of few do not tell that from padding, nor padded to several times their size."""

MANY = 300

NORMS: list[Callable[[int], nn.Module]] = [
    nn.BatchNorm2d,
    nn.BatchNorm2d,
    lambda width: nn.GroupNorm(2, width),
    nn.InstanceNorm2d,
    lambda _: nn.Identity(),
]

Change = Callable[[Tensor], Tensor]
Mode = Literal["zeros", "reflect", "replicate", "circular"]
Ends = tuple[int, int]
"""Before the first and behind the last."""


@dataclass(frozen=True)
class Axis:
    """Where the cells of an axis of a map lie along an axis of the picture.

    Attributes:
        of: the picture's axis, 0 or 1.
        count: number of cells.
        start, step: the middle of the first in pixels, and from one to the next, below 0 where they are reversed.
    """

    of: int
    count: int
    start: float = 0.5
    step: float = 1.0

    def see(self, side: int, stride: int, border: Ends = (0, 0), dilation: int = 1, *, ceil: bool = False) -> Axis:
        """Go through a convolution, or a pooling."""
        wide = dilation * (side - 1)
        room = self.count + sum(border) - wide - 1
        count = -(-room // stride) + 1 if ceil else room // stride + 1
        count -= ceil and (count - 1) * stride >= self.count + border[0]
        return replace(self, count=count, start=self.start + self.step * (wide / 2 - border[0]), step=self.step * stride)

    def pad(self, before: int, behind: int) -> Axis:
        """Add cells at either end; fewer than none are cut off."""
        return replace(self, count=self.count + before + behind, start=self.start - self.step * before)

    def flip(self) -> Axis:
        """Reverse the order."""
        return replace(self, start=self.start + self.step * (self.count - 1), step=-self.step)

    def resize(self, count: int) -> Axis:
        """Have so many cells over the same part."""
        step = self.step * self.count / count
        return replace(self, count=count, start=self.start + (step - self.step) / 2, step=step)


class Block(nn.Module):
    """Two convolutions, with a gate over all cells or without, and a shortcut."""

    def __init__(self, width: int, side: int, mode: Mode, *, gate: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, side, padding=side // 2, padding_mode=mode) for _ in range(2))
        self.norm, self.gate = nn.BatchNorm2d(width), nn.Linear(width, width) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]`, twice."""
        inner = self.second(self.norm(self.first(x)).relu())
        return (x + (inner if self.gate is None else inner * self.gate(inner.mean((2, 3)))[:, :, None, None].sigmoid())).relu()


class Drawn(nn.Module):
    """Layers drawn by chance, of which some change where cells lie, pooling, and one linear layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        torch.manual_seed(seed)
        high = self.chance.choice([48, 64, 75, 96, 128])
        self.size = high, high if self.chance.random() < 0.6 else self.chance.choice([48, 64, 80, 96, 128])
        self.axes: tuple[Axis, Axis] = (Axis(0, self.size[0]), Axis(1, self.size[1]))
        self.width, self.inside = self.chance.choice([8, 16, 24]), 3
        self.norm = self.chance.choice(NORMS)
        self.mode: Mode = self.chance.choice(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])
        self.borders = self.chance.choice(["same", "same", "even", "none", "mixed"])
        self.grown = False
        self.body, self.steps = nn.ModuleList(), list[Change]()
        self._draw(self.chance.randint(LEAST, 14))
        self.fc = nn.Linear(self.inside, nets.CLASSES)

    def trunk(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, C, h, w]`."""
        for step in self.steps:
            x = step(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.trunk(x).mean((2, 3)))

    @property
    def fewest(self) -> int:
        """Rows or columns."""
        return min(axis.count for axis in self.axes)

    def _draw(self, last: int) -> None:
        for _ in range(self.chance.choice([0, 0, 1, 2])):
            self._move()
        self._convolve(self.chance.choice([3, 4, 5, 7]), self.chance.choice([1, 2, 2, 4]))
        kinds = [self._widen, self._widen, self._halve, self._halve, self._pool, self._block, self._blur, self._grow, self._move]
        for _ in range(40):
            if self.fewest <= last:
                break
            self.chance.choice(kinds)()
        if self.chance.random() < 0.3:
            self._move()
        self._convolve(1, 1, must=True)

    def _add(self, change: Change, axes: Sequence[Axis], *, must: bool = False) -> bool:
        """Go on with a function, unless it leaves too little, or what is no map any more; one in three is a module."""
        grid = axes[0].count, axes[1].count
        if not must and not (min(grid) >= LEAST and max(grid) <= 250 and is_proportional(grid, self.size)):
            return False
        module = change if isinstance(change, nn.Module) else heads.Applied(change)
        if isinstance(change, nn.Module) or self.chance.random() < 1 / 3:
            self.body.append(module)
            change = module
        self.steps.append(change)
        self.axes = axes[0], axes[1]
        return True

    def _move(self) -> None:
        """Pad, cut, resize, thin out, turn."""
        rows, columns = self.axes
        kind = self.chance.choice(["pad", "pad", "cut", "cut", "fill", "resize", "resize", "thin", "flip", "exchange"])
        if kind in ("pad", "cut"):
            (top, bottom), (left, right) = (
                [self.chance.choice([0, 1, axis.count // 12, axis.count // 5]) for _ in range(2)] for axis in self.axes
            )
            mode = self.chance.choice(["constant", "reflect", "replicate", "circular"])
            sides = top, bottom, left, right = [side if kind == "pad" else -side for side in (top, bottom, left, right)]
            mode = mode if kind == "pad" else "constant"
            self._add(
                lambda x: functional.pad(x, (left, right, top, bottom), mode), (rows.pad(*sides[:2]), columns.pad(*sides[2:]))
            )
        elif kind == "fill" and self.fewest >= COARSE:
            more = [-axis.count % 32 for axis in self.axes]
            self._add(lambda x: functional.pad(x, (0, more[1], 0, more[0])), (rows.pad(0, more[0]), columns.pad(0, more[1])))
        elif kind == "resize" and self.fewest >= COARSE:
            size = [max(LEAST, int(axis.count * self.chance.choice([0.5, 0.7, 0.8, 1.2, 1.5, 2]))) for axis in self.axes]
            mode = self.chance.choice(["bilinear", "bicubic", "area"])
            self._add(lambda x: functional.interpolate(x, size, mode=mode), (rows.resize(size[0]), columns.resize(size[1])))
        elif kind == "thin":
            down, across = self.chance.choice([(2, 2), (2, 1), (1, 2)])
            self._add(lambda x: x[:, :, ::down, ::across], (rows.see(1, down), columns.see(1, across)))
        elif kind == "flip":
            self._add(lambda x: x.flip(2, 3), (rows.flip(), columns.flip()))
        elif kind == "exchange":
            self._add(lambda x: x.transpose(2, 3), (columns, rows))

    def _widen(self) -> None:
        self._convolve(self.chance.choice([1, 3, 3, 5, 7]), 1, self.chance.choice([1, 1, 1, 2]))

    def _halve(self) -> None:
        self._convolve(self.chance.choice([2, 3, 3, 4, 5]), self.chance.choice([2, 2, 2, 3]))

    def _convolve(self, side: int, stride: int, dilation: int = 1, *, must: bool = False) -> None:
        """A convolution, padded by itself, or before it as TensorFlow's is, or not."""
        wide = dilation * (side - 1)
        kind = self.chance.choice(["same", "even", "none"]) if self.borders == "mixed" else self.borders
        kind = "same" if self.inside == 3 and self.fewest < 8 else kind
        lacking = [max(0, (-(-axis.count // stride) - 1) * stride + wide + 1 - axis.count) for axis in self.axes]
        borders = [
            {"same": (wide // 2, wide // 2), "none": (0, 0), "even": (lack // 2, lack - lack // 2)}[kind] for lack in lacking
        ]
        if self.mode != "zeros" and any(max(ends) >= axis.count for ends, axis in zip(borders, self.axes, strict=True)):
            return
        same, mode = (wide // 2 if kind == "same" else 0), "constant" if self.mode == "zeros" else self.mode
        layers = [nn.Conv2d(self.inside, self.width, side, stride, same, dilation, padding_mode=self.mode), self.norm(self.width)]
        if kind == "even":
            layers.insert(0, heads.Applied(lambda x: functional.pad(x, (*borders[1], *borders[0]), mode)))
        axes = [axis.see(side, stride, ends, dilation) for axis, ends in zip(self.axes, borders, strict=True)]
        if self._add(nn.Sequential(*layers, nn.ReLU()), axes, must=must or self.inside == 3):
            self.inside = self.width

    def _pool(self) -> None:
        side, ceil = self.chance.choice([2, 3]), self.chance.random() < 0.5
        border = self.chance.choice([0, side // 3])
        axes = [axis.see(side, 2, (border, border), ceil=ceil) for axis in self.axes]
        pools = nn.MaxPool2d(side, 2, border, ceil_mode=ceil), nn.AvgPool2d(side, 2, border, ceil_mode=ceil)
        self._add(self.chance.choice(pools), axes)

    def _block(self) -> None:
        side = self.chance.choice([3, 3, 5])
        if self.fewest > side:
            self._add(Block(self.inside, side, self.mode, gate=self.chance.random() < 0.4), self.axes)

    def _blur(self) -> None:
        """A fixed kernel, as BlurPool has it."""
        weights, width = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(self.inside, 1, 3, 3) / 16, self.inside
        axes = [axis.see(3, 2, (1, 1)) for axis in self.axes]
        self._add(lambda x: functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), weights, stride=2, groups=width), axes)

    def _grow(self) -> None:
        """Twice as many rows and columns, by a transposed convolution or as they are; once."""
        if self.grown:
            return
        self.grown = True
        grown = self.chance.choice([nn.ConvTranspose2d(self.inside, self.inside, 4, 2, 1), nn.Upsample(scale_factor=2)])
        self._add(grown, [axis.resize(2 * axis.count) for axis in self.axes])


def find_off(seed: int) -> tuple[float, float | None]:
    """How far out of place a network's map is over all of the picture, and how far it is; None: it is refused, or doubted."""
    model = Drawn(seed).eval()
    grid = model.axes[0].count, model.axes[1].count
    with torch.no_grad():
        assert model.trunk(torch.zeros(1, 3, *model.size)).shape[2:] == grid
    layer = f"body.{len(model.body) - 1}"
    try:
        made = open_backend(model, Config(layers=(layer,), channels_last=False), model.size, torch.device("cpu"))
    except ConfigError:
        return far_off(model.axes, View(1, Layout("nchw", grid[0], grid[1], 1)), model.size), None
    site = made.aligned[layer].site
    (view,) = site.views or (View(1, site.layout),)
    plain = far_off(model.axes, View(1, replace(site.layout, turn=UPRIGHT)), model.size)
    return plain, far_off(model.axes, view, model.size) if made.aligned[layer].told else None


def far_off(axes: Sequence[Axis], view: View, size: tuple[int, int]) -> float:
    """Return how far, in cells, a cell of a map that lies so is out of place."""
    off = 0.0
    (high, low), spans = (axis.count for axis in axes), (view.rows, view.columns)
    for cell in product((0, high - 1), (0, low - 1)):
        shares = view.layout.turn.place((cell[0] + 0.5) / high, (cell[1] + 0.5) / low)
        for axis, index in zip(axes, cell, strict=True):
            first, last = spans[axis.of]
            shown, true = first + (last - first) * shares[axis.of], (axis.start + axis.step * index) / size[axis.of]
            off = max(off, abs(shown - true) * view.layout.grid[axis.of])
    return off


@pytest.mark.parametrize("seed", range(16))
def test_a_map_lies_where_its_network_looks(seed: int) -> None:
    """Or it is refused, or doubted."""
    assert (find_off(seed)[1] or 0) <= NEAR


@pytest.mark.slow
def test_few_maps_of_many_networks_are_out_of_place_without_a_word() -> None:
    """Those of kernels that are wider than the maps that they look at, where nothing shows how far they reach."""
    found = [find_off(seed) for seed in range(MANY)]
    assert sum(plain > NEAR for plain, _ in found) >= MANY / 3
    assert sum(off is None for _, off in found) <= MANY / 8
    assert sum((off or 0) > NEAR for _, off in found) <= MANY / 100
