"""How a layer's output lies in memory, and how it becomes a grid of cells `[N, C, h, w]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

MAX_EXTRA_TOKENS = 8
"""Most class, distillation or register tokens that are looked for before a picture's tokens."""

MAX_EXTRA_GIVEN = 64
"""Most of them where the configuration says what the grid is."""


@dataclass(frozen=True)
class Layout:
    """Where channels and cells are in a layer's output.

    `order` is `nchw` (`[N, C, h, w]`), `nhwc` (`[N, h, w, C]`), `tokens` (`[N, extra + h * w, C]`, rows first) or `sequence`
    (`[extra + h * w, N, C]`).
    """

    order: Literal["nchw", "nhwc", "tokens", "sequence"]
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
        tokens = values.transpose(0, 1) if self.order == "sequence" else values
        cells = tokens[:, self.extra :]
        height, width = self._cells(cells.shape[1])
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

    def _cells(self, count: int) -> tuple[int, int]:
        """The grid of `count` tokens: as surveyed, or of the same proportions for a picture of another size."""
        if count == self.height * self.width:
            return self.height, self.width
        height = round((count * self.height / self.width) ** 0.5)
        return height, count // max(height, 1)


def layout_of(
    shape: Sequence[int], batch: int, picture: tuple[int, int], token_grid: tuple[int, int] | None = None
) -> Layout | None:
    """The layout of an output of `shape` for `batch` pictures of `picture` = (height, width); None: it is no map.

    A map's cells keep the picture's proportions, which tells channels from cells. `token_grid` = (h, w) settles the tokens'.
    """
    if len(shape) == 4 and shape[0] == batch:
        _, first, second, third = shape
        if _proportional((second, third), picture):
            return Layout("nchw", second, third, first)
        if _proportional((first, second), picture):
            return Layout("nhwc", first, second, third)
    if len(shape) == 3 and batch in shape[:2]:
        order: Literal["tokens", "sequence"] = "tokens" if shape[0] == batch else "sequence"
        grid = _token_grid(shape[1] if order == "tokens" else shape[0], picture, token_grid)
        return Layout(order, *grid[:2], shape[2], grid[2]) if grid else None
    return None


def _proportional(cells: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether `cells` could be `picture` scaled down: the same stride both ways, but for rounding at the border."""
    (height, width), (picture_height, picture_width) = cells, picture
    if not (0 < height <= picture_height and 0 < width <= picture_width):
        return False
    return abs(height * picture_width - width * picture_height) <= 2 * max(picture_height, picture_width)


def _token_grid(tokens: int, picture: tuple[int, int], given: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """(h, w, extra) of a row of tokens, the extra ones first."""
    if given is not None and 0 <= tokens - given[0] * given[1] <= MAX_EXTRA_GIVEN:
        return (*given, tokens - given[0] * given[1])
    for extra in range(min(MAX_EXTRA_TOKENS, tokens - 1) + 1):
        cells = tokens - extra
        height = round((cells * picture[0] / picture[1]) ** 0.5)
        if not height or cells % height:
            continue
        width = cells // height
        if picture[0] % height == 0 and picture[1] % width == 0 and picture[0] // height == picture[1] // width:
            return height, width, extra
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
