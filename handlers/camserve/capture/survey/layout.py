"""How a layer's output lies in memory, and how it becomes a grid of cells `[N, C, h, w]`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

MAX_EXTRA_TOKENS = 8
"""Most class, distillation or register tokens that are looked for before a picture's tokens."""

BORDER = 2
"""By how many rows or columns a grid may differ from what the picture's size makes of the surveyed one: patches that go beyond a
border, or that leave a part of the picture out, and what of that the surveyed size multiplies."""

Scale = tuple[float, float]
"""How many times as high and as wide as those that were surveyed."""

Order = Literal["nchw", "nhwc", "tokens", "sequence"]

Grid = tuple[int, int, int]
"""How tokens lie: rows, columns, and the number of extra tokens before them."""


@dataclass(frozen=True)
class Layout:
    """Where channels and cells are in a layer's output.

    `order` is `nchw` (`[N, C, h, w]`), `nhwc` (`[N, h, w, C]`), `tokens` (`[N, extra + h * w, C]`, rows first) or `sequence`
    (`[extra + h * w, N, C]`).
    """

    order: Order
    height: int
    width: int
    channels: int
    extra: int = 0

    def to_grid(self, values: Tensor, scale: Scale | None = None) -> Tensor:
        """A view of the layer's output, or of its gradient, as `[N, C, h, w]`.

        Args:
            scale: how many times as high and as wide the pictures are as those that were surveyed; None: not known.

        Raises:
            ValueError: how so many tokens lie cannot be told.
        """
        if self.order == "nchw":
            return values
        if self.order == "nhwc":
            return values.permute(0, 3, 1, 2)
        tokens = values.transpose(0, 1) if self.order == "sequence" else values
        cells = tokens[:, self.extra :]
        height, width = self._cells(cells.shape[1], scale)
        return cells.transpose(1, 2).reshape(len(cells), -1, height, width)

    def shape(self, batch: int) -> tuple[int, ...]:
        """The shape of the layer's output for `batch` pictures of the size that was surveyed."""
        tokens = self.extra + self.height * self.width
        return {
            "nchw": (batch, self.channels, self.height, self.width),
            "nhwc": (batch, self.height, self.width, self.channels),
            "tokens": (batch, tokens, self.channels),
            "sequence": (tokens, batch, self.channels),
        }[self.order]

    def _cells(self, count: int, scale: Scale | None) -> tuple[int, int]:
        """The grid of `count` tokens of pictures of another size: of patches of the same size, or, where the model takes every
        picture to its own size, as surveyed."""
        if scale is None:
            side = (count / (self.height * self.width)) ** 0.5
            scale = side, side
        rows, columns = self.height * scale[0], self.width * scale[1]
        near = range(max(1, math.ceil(rows - BORDER)), math.floor(rows + BORDER) + 1)
        grids = [(h, count // h) for h in near if count % h == 0 and abs(count // h - columns) <= BORDER]
        if grids:
            return min(grids, key=lambda grid: abs(grid[0] - rows) + abs(grid[1] - columns))
        if count == self.height * self.width:
            return self.height, self.width
        raise ValueError(f"{count} tokens are no grid of about {rows:.1f} x {columns:.1f} cells")


def find_layouts(shape: Sequence[int], batch: int, picture: tuple[int, int]) -> tuple[Layout, ...]:
    """How an output of `shape` can be read as a map of `batch` pictures of `picture` = (height, width).

    A map's cells keep the picture's proportions, which tells channels from cells; where there are about as many channels as
    rows or columns, both readings are possible: channels first, then channels last.
    """
    if len(shape) != 4 or shape[0] != batch:
        return ()
    _, first, second, third = shape
    found = []
    if _proportional((second, third), picture):
        found.append(Layout("nchw", second, third, first))
    if _proportional((first, second), picture):
        found.append(Layout("nhwc", first, second, third))
    return tuple(found)


def _proportional(cells: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether `cells` could be `picture` scaled down: the same stride both ways, but for rounding at the border."""
    (height, width), (picture_height, picture_width) = cells, picture
    if not (0 < height <= picture_height and 0 < width <= picture_width):
        return False
    return abs(height * picture_width - width * picture_height) <= 2 * max(picture_height, picture_width)


def find_tokens(shape: Sequence[int], batch: int) -> tuple[Literal["tokens", "sequence"], int, int] | None:
    """In which order an output `[batch, T, C]` or `[T, batch, C]` lies, T, and C; None: it has another shape."""
    if len(shape) != 3 or batch not in shape[:2]:
        return None
    return ("tokens", shape[1], shape[2]) if shape[0] == batch else ("sequence", shape[0], shape[2])


@lru_cache(maxsize=1024)
def guess_grid(tokens: int, picture: tuple[int, int]) -> Grid | None:
    """How a row of tokens lies, by nothing but the size of the picture; None: it cannot be told.

    Square patches must divide the picture. That is no grid to trust where patches that leave a border out, or go beyond it,
    would need fewer extra tokens.
    """
    cells = range(tokens, max(0, tokens - MAX_EXTRA_TOKENS - 1), -1)
    exact = next((grid for count in cells for grid in _divided(count, picture, tokens)), None)
    if exact is None:
        return None
    fewest = min((tokens - h * w for h, w in _bordered(picture) if 0 <= tokens - h * w <= MAX_EXTRA_TOKENS), default=exact[2])
    return None if fewest < exact[2] else exact


def _divided(count: int, picture: tuple[int, int], tokens: int) -> Iterator[Grid]:
    """The grid of `count` square patches that divide the picture."""
    height = round((count * picture[0] / picture[1]) ** 0.5)
    if height and count % height == 0:
        width = count // height
        if picture[0] % height == 0 and picture[1] % width == 0 and picture[0] // height == picture[1] // width:
            yield height, width, tokens - count


@lru_cache(maxsize=16)
def _bordered(picture: tuple[int, int]) -> frozenset[tuple[int, int]]:
    """The grids of all square patches that leave a border of the picture out, or that go beyond it."""
    height, width = picture
    sides = range(1, min(picture) + 1)
    return frozenset(grid for p in sides for grid in ((height // p, width // p), (-(-height // p), -(-width // p))))


def extract_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first of a tuple or list."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def replace_tensor(output: Any, value: Tensor) -> Any:
    """`output` with its first tensor replaced."""
    if isinstance(output, tuple):
        rest = (value, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    return [value, *output[1:]] if isinstance(output, list) else value


OUTPUT_FAULTS = (
    "the model's output must be class scores of shape",
    "the model must give one row of class scores for each picture",
)
"""How `extract_logits` says that a model ran, and gave something else."""


def extract_logits(output: Any, count: int | None = None) -> Tensor:
    """The class scores `[N, K]` of a model's output: a tensor, the first of a tuple, or `.logits` as the field has it.

    Args:
        count: how many pictures it is an answer to, where that is to be checked.

    Raises:
        ValueError: there are no scores of that shape, or not `count` rows of them.
    """
    found = getattr(output, "logits", None)
    if isinstance(output, dict):
        found = output.get("logits", next(iter(output.values()), None))
    if not isinstance(found, Tensor):
        found = extract_tensor(output)
    if found is not None and found.ndim > 2 and all(side == 1 for side in found.shape[2:]):
        found = found.flatten(1)
    if found is None or found.ndim != 2:
        came = "no tensor" if found is None else f"shape {list(found.shape)}"
        raise ValueError(f"{OUTPUT_FAULTS[0]} [N, classes], got {came}")
    if count is not None and len(found) != count:
        raise ValueError(f"{OUTPUT_FAULTS[1]}, got {len(found)} for {count}")
    return found


def synthesize_pictures(size: tuple[int, int], count: int = 2, seed: int = 0) -> Tensor:
    """Normalised pictures `[count, 3, height, width]` of soft random blobs, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fine = torch.randn(count, 3, *size, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return blobs + 0.25 * fine
