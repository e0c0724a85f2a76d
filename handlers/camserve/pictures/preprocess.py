"""Turns an RGB picture into the model's input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from camserve.core.config import Config
from camserve.core.geometry import Rect, resized, view, window
from camserve.pictures.decode import check_pixels

_SUPPORT = 3
"""Radius of the widest filter, Lanczos, in pixels of the coarser picture."""


def is_stateless(step: object) -> bool:
    """Return True if a step is made of torchvision's own transforms alone, which may run in several threads."""
    parts = getattr(step, "transforms", ())  # of Compose, RandomApply and their like, in either version
    own = type(step).__module__.startswith("torchvision.") and not hasattr(step, "lambd")
    return own and all(is_stateless(part) for part in parts)


class Preprocess:
    """Turns an RGB picture into the model's input, bit for bit as torchvision's transforms do.

    Equals `Compose([Resize(resize, interpolation), CenterCrop(crop), ToTensor(), Normalize(mean, std)])`: the same
    resampling by Pillow, and the same float32 operations in the same order, in place on one tensor. (Folded into one scale
    and offset they would save 0.1 ms and be off by 5e-7.) One exception: if the resized picture would have more than
    `max_pixels`, because its shorter side is very short, only the part that the crop keeps is resampled. A few pixels in a
    thousand then differ by one level of 255 (by more with `nearest` and `box`, whose weights jump).

    Args:
        config: `resize`, `crop`, `interpolation`, `mean`, `std`, `max_pixels`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._filter = Image.Resampling[config.interpolation.upper()]
        self._mean = torch.tensor(config.mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(config.std, dtype=torch.float32).view(3, 1, 1)

    @staticmethod
    def from_callable(transform: Callable[[Image.Image], torch.Tensor]) -> Preprocess:
        """Wrap a handler's own `image_processing`, which replaces the configured steps; the view is then unknown."""
        return _OwnPreprocess(transform)

    def view(self, width: int, height: int) -> Rect | None:
        """Return the rectangle of a picture of `width` × `height` pixels that reaches the model; None if it is unknown."""
        return view(width, height, self._config.resize, self._config.crop)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Return the model's input for one picture in mode RGB: float32 `[3, h, w]`, normalised, contiguous.

        Raises:
            RequestError: 413 `ImageTooLarge` if there is no crop and the resized picture has more than `max_pixels`.
        """
        pixels = np.asarray(self._cut(picture)).transpose(2, 0, 1).copy()
        return torch.from_numpy(pixels).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)

    def _cut(self, picture: Image.Image) -> Image.Image:
        """Resize and crop the picture."""
        config = self._config
        size = resized(*picture.size, config.resize)
        kept = window(*size, config.crop)
        if isinstance(config.resize, int) and size[0] * size[1] > config.max_pixels and size != picture.size:
            if config.crop is None:
                check_pixels(size, config, " after resizing")
            return self._cut_part(picture, size, kept)
        if size != picture.size:
            picture = picture.resize(size, self._filter)
        return picture if kept == (0, 0, *size) else picture.crop(kept)

    def _cut_part(self, picture: Image.Image, size: tuple[int, int], kept: tuple[int, int, int, int]) -> Image.Image:
        """Resize and crop without resampling more than is kept; what lies beyond the picture is black.

        Pillow takes the box in float32, which is exact for small numbers only, so the picture is first cropped to whole
        pixels around it.
        """
        spans = [_span(*args) for args in zip(picture.size, size, kept[:2], kept[2:], strict=True)]
        (left, right, x, x_end), (top, bottom, y, y_end) = spans
        near = picture.crop((left, top, right, bottom))
        canvas = Image.new("RGB", (kept[2] - kept[0], kept[3] - kept[1]))
        target = max(kept[0], 0), max(kept[1], 0), min(kept[2], size[0]), min(kept[3], size[1])
        part = near.resize((target[2] - target[0], target[3] - target[1]), self._filter, box=(x, y, x_end, y_end))
        canvas.paste(part, (target[0] - kept[0], target[1] - kept[1]))
        return canvas


def _span(side: int, new_side: int, start: int, end: int) -> tuple[int, int, float, float]:
    """Return, for one axis, the source pixels [first, last) that resampling [start, end) needs, and where in them it lies."""
    scale = side / new_side
    low, high = max(start, 0) * scale, min(end, new_side) * scale
    margin = _SUPPORT * max(scale, 1) + 1
    first, last = max(0, math.floor(low - margin)), min(side, math.ceil(high + margin))
    return first, last, low - first, min(high - first, float(last - first))


class _OwnPreprocess(Preprocess):
    """See `Preprocess.from_callable`."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._transform = transform

    def view(self, width: int, height: int) -> None:
        """Return None: which part the transform keeps is not known."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Return the transform's result `[channels, h, w]`; raises TypeError if it is anything else."""
        tensor = self._transform(picture)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            came = f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"image_processing: expected a tensor [channels, height, width], got {came}")
        return tensor
