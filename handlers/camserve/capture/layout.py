"""How a layer's output lies in memory, and how it becomes a grid of cells `[N, C, h, w]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

MAX_EXTRA_TOKENS = 8
"""Most class, distillation or register tokens that are looked for before a picture's tokens."""


@dataclass(frozen=True)
class Layout:
    """Where channels and cells are in a layer's output.

    `order` is `nchw` (`[N, C, h, w]`), `nhwc` (`[N, h, w, C]`) or `tokens` (`[N, extra + h * w, C]`, rows first).
    """

    order: Literal["nchw", "nhwc", "tokens"]
    height: int
    width: int
    channels: int
    extra: int = 0

    def grid(self, values: Tensor) -> Tensor:
        """A view of the layer's output, or of its gradient, as `[N, C, h, w]`."""
        if self.order == "nchw":
            return values
        if self.order == "nhwc":
            return values.permute(0, 3, 1, 2)
        cells = values[:, self.extra :]
        height, width = self._cells(cells.shape[1])
        return cells.transpose(1, 2).reshape(len(cells), -1, height, width)

    def _cells(self, count: int) -> tuple[int, int]:
        """The grid of `count` tokens: as surveyed, or of the same proportions for a picture of another size."""
        if count == self.height * self.width:
            return self.height, self.width
        height = round((count * self.height / self.width) ** 0.5)
        return height, count // max(height, 1)


def layout_of(output: Tensor, batch: int, picture: tuple[int, int], grid: tuple[int, int] | None = None) -> Layout | None:
    """The layout of a layer's output for `batch` pictures of `picture` = (height, width); None: it is no map.

    A map's cells keep the picture's proportions, which tells channels from cells. `grid` = (h, w) settles the tokens'.
    """
    shape = tuple(output.shape)
    if not output.is_floating_point() or not shape or shape[0] != batch:
        return None
    if len(shape) == 4:
        _, first, second, third = shape
        if _proportional((second, third), picture):
            return Layout("nchw", second, third, first)
        if _proportional((first, second), picture):
            return Layout("nhwc", first, second, third)
    if len(shape) == 3:
        return _token_layout(shape[1], shape[2], picture, grid)
    return None


def _proportional(cells: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether `cells` could be `picture` scaled down: the same stride both ways, but for rounding at the border."""
    (height, width), (picture_height, picture_width) = cells, picture
    if not (0 < height <= picture_height and 0 < width <= picture_width):
        return False
    return abs(height * picture_width - width * picture_height) <= 2 * max(picture_height, picture_width)


def _token_layout(tokens: int, channels: int, picture: tuple[int, int], grid: tuple[int, int] | None) -> Layout | None:
    if grid is not None:
        extra = tokens - grid[0] * grid[1]
        return Layout("tokens", *grid, channels, extra) if extra >= 0 else None
    for extra in range(min(MAX_EXTRA_TOKENS, tokens - 1) + 1):
        cells = tokens - extra
        height = round((cells * picture[0] / picture[1]) ** 0.5)
        if not height or cells % height:
            continue
        width = cells // height
        if picture[0] % height == 0 and picture[1] % width == 0 and picture[0] // height == picture[1] // width:
            return Layout("tokens", height, width, channels, extra)
    return None


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first of a tuple or list."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_first(output: Any, value: Tensor) -> Any:
    """`output` with its first tensor replaced."""
    if isinstance(output, tuple):
        rest = (value, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    return [value, *output[1:]] if isinstance(output, list) else value


def logits_of(output: Any) -> Tensor:
    """The class scores `[N, K]` of a model's output: a tensor, the first of a tuple, or `.logits` as the field has it.

    Raises:
        ValueError: there are no scores of that shape.
    """
    found = getattr(output, "logits", None)
    if isinstance(output, dict):
        found = output.get("logits", next(iter(output.values()), None))
    if not isinstance(found, Tensor):
        found = first_tensor(output)
    if found is not None and found.ndim > 2 and all(side == 1 for side in found.shape[2:]):
        found = found.flatten(1)
    if found is None or found.ndim != 2:
        came = "no tensor" if found is None else f"shape {list(found.shape)}"
        raise ValueError(f"the model's output must be class scores of shape [N, classes], got {came}")
    return found


def synthetic_picture(size: tuple[int, int], count: int = 2, seed: int = 0) -> Tensor:
    """Normalised pictures `[count, 3, height, width]` of soft random blobs, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fine = torch.randn(count, 3, *size, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return blobs + 0.25 * fine
