"""How a layer's output lies in memory, how it becomes a grid of cells `[N, C, h, w]`, and what a model's output holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from camserve.core.config import Config

PIXEL_STD = 0.225
"""Standard deviation of the pixels of photographs, from 0 to 1: ImageNet's."""

SAME_ORDER = 8
"""Factor within which inputs vary as far as each other. Values from 0 to 1, and from -1 to 1, are within."""

MAX_EXTRA_TOKENS = 8
"""Most class, distillation and register tokens that are expected before a picture's tokens."""

BORDER = 2
"""Tolerance, in cells an axis, when the token grid of another input size is inferred from the surveyed one. Patch embeddings pad
or drop incomplete patches at the border, so the scaled grid may be off by up to two."""

Scale = tuple[float, float]
"""How many times as high, and as wide, pictures are as those that were surveyed."""

Order = Literal["nchw", "nhwc", "tokens", "sequence"]
"""Order of axes: `[N, C, h, w]`, `[N, h, w, C]`, `[N, extra + h * w + behind, C]`, or `[extra + h * w + behind, N, C]`."""

TOKENS: tuple[Order, ...] = ("tokens", "sequence")
"""Orders without axes of their own for rows and columns."""

Grid = tuple[int, int, int]
"""Rows and columns of tokens, and the number of extra tokens before them."""


class Turn(NamedTuple):
    """How a grid of cells is turned: rows and columns are exchanged first, then their orders are reversed."""

    transposed: bool = False
    upended: bool = False
    mirrored: bool = False

    def apply(self, values: Tensor) -> Tensor:
        """Turn `[N, C, h, w]`; the result may be a view."""
        values = values.transpose(2, 3) if self.transposed else values
        reversed_axes = [axis for axis, turned in ((2, self.upended), (3, self.mirrored)) if turned]
        return values.flip(reversed_axes) if reversed_axes else values

    def place(self, row: float, column: float) -> tuple[float, float]:
        """Return where a place goes; all are shares of the height and the width, from the upper left."""
        if self.transposed:
            row, column = column, row
        return (1 - row if self.upended else row), (1 - column if self.mirrored else column)

    def __str__(self) -> str:
        words = [word for word, turned in zip(("transposed", "upside down", "mirrored"), self, strict=True) if turned]
        return " and ".join(words) or "upright"


UPRIGHT = Turn()
"""As in the picture."""


@dataclass(frozen=True)
class Layout:
    """Where channels and cells are in a layer's output.

    Attributes:
        order: of the axes.
        height: rows of cells as they lie in memory.
        width: columns of cells as they lie in memory.
        channels: C.
        extra: tokens before those of the cells.
        behind: tokens behind those of the cells.
        turn: how what lies in memory is turned to lie as in the picture.
    """

    order: Order
    height: int
    width: int
    channels: int
    extra: int = 0
    behind: int = 0
    turn: Turn = UPRIGHT

    @property
    def others(self) -> int:
        """Number of tokens beside those of the cells."""
        return self.extra + self.behind

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells, as in the picture: h, w."""
        return (self.width, self.height) if self.turn.transposed else (self.height, self.width)

    def to_grid(self, values: Tensor, scale: Scale | None = None) -> Tensor:
        """Return the layer's output, or its gradient, as `[N, C, h, w]`.

        Args:
            values: of the shape that `shape` gives for pictures of the surveyed size.
            scale: of the pictures; None: not known.

        Raises:
            ValueError: so many tokens fit no grid of about the expected size.
        """
        if self.order == "nchw":
            return self.turn.apply(values)
        if self.order == "nhwc":
            return self.turn.apply(values.permute(0, 3, 1, 2))
        tokens = values.transpose(0, 1) if self.order == "sequence" else values
        cells = tokens[:, self.extra : tokens.shape[1] - self.behind]
        height, width = self._cells(cells.shape[1], scale)
        return self.turn.apply(cells.transpose(1, 2).reshape(len(cells), -1, height, width))

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the layer's output for `batch` pictures of the surveyed size."""
        tokens = self.others + self.height * self.width
        return {
            "nchw": (batch, self.channels, self.height, self.width),
            "nhwc": (batch, self.height, self.width, self.channels),
            "tokens": (batch, tokens, self.channels),
            "sequence": (tokens, batch, self.channels),
        }[self.order]

    def index(self, cell: tuple[int, int]) -> tuple[int | slice, ...]:
        """Return where the channels of the first picture's cell, (row, column) as it lies in memory, are in a layer's output."""
        row, column = cell
        token = self.extra + row * self.width + column
        return {
            "nchw": (0, slice(None), row, column),
            "nhwc": (0, row, column),
            "tokens": (0, token),
            "sequence": (token, 0),
        }[self.order]

    def mix(self, cells: Tensor, others: Tensor) -> Tensor:
        """Return a layer's output with the cells of one and the tokens beside them of another; both of the shape of `shape`."""
        if self.order not in TOKENS:
            return cells
        axis = 0 if self.order == "sequence" else 1
        mixed, count = others.clone(), others.shape[axis] - self.others
        mixed.narrow(axis, self.extra, count).copy_(cells.narrow(axis, self.extra, count))
        return mixed

    def _cells(self, count: int, scale: Scale | None) -> tuple[int, int]:
        """Return rows and columns of `count` tokens of pictures of another size.

        Patches keep their size, so the grid grows with the picture; unless the model resizes every picture by itself, and the
        grid stays as surveyed.
        """
        if scale is None:
            side = (count / (self.height * self.width)) ** 0.5
            scale = side, side
        scale = (scale[1], scale[0]) if self.turn.transposed else scale
        rows, columns = self.height * scale[0], self.width * scale[1]
        near = range(max(1, math.ceil(rows - BORDER)), math.floor(rows + BORDER) + 1)
        grids = [(h, count // h) for h in near if count % h == 0 and abs(count // h - columns) <= BORDER]
        if grids:
            return min(grids, key=lambda grid: abs(grid[0] - rows) + abs(grid[1] - columns))
        if count == self.height * self.width:
            return self.height, self.width
        raise ValueError(f"{count} tokens are no grid of about {rows:.1f} x {columns:.1f} cells")


def find_layouts(shape: Sequence[int], batch: int, picture: tuple[int, int]) -> tuple[Layout, ...]:
    """List the layouts in which an output of `shape` is a map of `batch` pictures of `picture` = (height, width).

    A map keeps the picture's proportions, which tells cells from channels. Where there are about as many channels as rows or
    columns, two layouts are possible: channels first, then channels last.
    """
    if len(shape) != 4 or shape[0] != batch:
        return ()
    _, first, second, third = shape
    layouts = []
    if is_proportional((second, third), picture):
        layouts.append(Layout("nchw", second, third, first))
    if is_proportional((first, second), picture):
        layouts.append(Layout("nhwc", first, second, third))
    return tuple(layouts)


def is_proportional(cells: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Return whether `cells` could be `picture` scaled down: the same stride both ways, but for rounding at the border."""
    (height, width), (picture_height, picture_width) = cells, picture
    if not (0 < height <= picture_height and 0 < width <= picture_width):
        return False
    return abs(height * picture_width - width * picture_height) <= 2 * max(picture_height, picture_width)


def find_tokens(shape: Sequence[int], batch: int) -> tuple[Literal["tokens", "sequence"], int, int] | None:
    """Return the order of an output `[batch, T, C]` or `[T, batch, C]`, T, and C; None: it has another shape."""
    if len(shape) != 3 or batch not in shape[:2]:
        return None
    return ("tokens", shape[1], shape[2]) if shape[0] == batch else ("sequence", shape[0], shape[2])


@lru_cache(maxsize=1024)
def guess_grid(tokens: int, picture: tuple[int, int]) -> Grid | None:
    """Guess the grid of a sequence of tokens from nothing but the size of the picture; None: it cannot be told.

    The grid is of square patches that divide the picture. It is not trusted where patches that leave a border out, or go
    beyond it, would need fewer extra tokens.
    """
    cells = range(tokens, max(0, tokens - MAX_EXTRA_TOKENS - 1), -1)
    exact = next((grid for count in cells for grid in _divided(count, picture, tokens)), None)
    if exact is None:
        return None
    fewest = min((tokens - h * w for h, w in _bordered(picture) if 0 <= tokens - h * w <= MAX_EXTRA_TOKENS), default=exact[2])
    return None if fewest < exact[2] else exact


def _divided(count: int, picture: tuple[int, int], tokens: int) -> Iterator[Grid]:
    """Yield the grid of `count` square patches that divide the picture, if there is one."""
    height = round((count * picture[0] / picture[1]) ** 0.5)
    if height and count % height == 0:
        width = count // height
        if picture[0] % height == 0 and picture[1] % width == 0 and picture[0] // height == picture[1] // width:
            yield height, width, tokens - count


@lru_cache(maxsize=16)
def _bordered(picture: tuple[int, int]) -> frozenset[tuple[int, int]]:
    """Return the grids of all square patches that leave a border of the picture out, or that go beyond it."""
    height, width = picture
    sides = range(1, min(picture) + 1)
    return frozenset(grid for p in sides for grid in ((height // p, width // p), (-(-height // p), -(-width // p))))


def extract_tensor(output: Any) -> Tensor | None:
    """Return the tensor, of any shape, of a module's output: the output itself, or the first of a tuple or list; else None."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def replace_tensor(output: Any, value: Tensor) -> Any:
    """Return a module's output with the tensor that `extract_tensor` takes replaced by `value`, of any shape."""
    if isinstance(output, tuple):
        rest = (value, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    return [value, *output[1:]] if isinstance(output, list) else value


def synthesize_pictures(size: tuple[int, int], count: int = 2, seed: int = 0, config: Config | None = None) -> Tensor:
    """Make normalised pictures `[count, channels, height, width]` of soft random blobs, the same for the same seed.

    Their numbers are about as large as those that `config` makes of pictures (None: the defaults), see `find_spread`.
    """
    config = config or Config()
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, config.channels, 8, 8, generator=generator)
    fine = torch.randn(count, config.channels, *size, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return find_spread(config) * (blobs + 0.25 * fine)


def find_spread(config: Config) -> float:
    """Return about how far the model's input varies: 1 as for ImageNet's mean and std, unless it is of another order.

    Models of X-rays may take -1024 to 1024. On numbers around 1 they would all but ignore the picture, and trials would try
    nothing.
    """
    spread = sum(PIXEL_STD * config.scale / std for std in config.std) / len(config.std)
    return 1.0 if 1 / SAME_ORDER <= spread <= SAME_ORDER else spread
