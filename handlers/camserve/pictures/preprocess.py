"""An RGB picture to the model's input. What reads pictures and tensors without torch is in `decode` and `tensors`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from camserve.core.config import Config
from camserve.core.geometry import Rect, resized, view, window
from camserve.pictures.decode import check_pixels

_SUPPORT = 3  # of the widest filter, Lanczos, in pixels of the coarser picture


def keeps_nothing(step: object) -> bool:
    """Whether this is made of torchvision's own transforms alone, which may run in several threads."""
    inside = getattr(step, "transforms", ())  # of Compose, RandomApply and their like, in either version
    own = type(step).__module__.startswith("torchvision.") and not hasattr(step, "lambd")
    return own and all(keeps_nothing(each) for each in inside)


class Preprocess:
    """An RGB picture to the model's input, as torchvision's transforms would, bit for bit.

    The same as `Compose([Resize(resize, interpolation), CenterCrop(crop), ToTensor(), Normalize(mean, std)])`: the same
    resampling by Pillow, and the same float32 operations in the same order, in place on one tensor (folded into one scale
    and offset they would save a tenth of a millisecond and be off by 5e-7). One exception: where a whole resized picture would
    have more than `max_pixels` (a shorter side of few pixels), only the part that the crop keeps is resampled; a few
    pixels in a thousand then differ by one level of 255 (by more with `nearest` and `box`, whose weights jump).

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
        """A handler's own `image_processing` in place of the configured one; the view is then unknown."""
        return _OwnPreprocess(transform)

    def view(self, width: int, height: int) -> Rect | None:
        """The rectangle of a picture of `width` × `height` pixels that reaches the model; None if that is unknown."""
        return view(width, height, self._config.resize, self._config.crop)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """The model's input for one picture in mode RGB: float32 [3, h, w], contiguous.

        Raises:
            RequestError: 413 `ImageTooLarge` if there is no crop and the resized picture has more than `max_pixels`.
        """
        pixels = np.asarray(self._cut(picture)).transpose(2, 0, 1).copy()
        return torch.from_numpy(pixels).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)

    def _cut(self, picture: Image.Image) -> Image.Image:
        """The picture, resized and cropped."""
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
        """The same without resizing more than is kept; what lies beyond the picture is black.

        Pillow takes a box in float32, so the picture is first cropped to whole pixels around it: small numbers are exact.
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
    """On one axis: the source pixels [first, last) that resampling [start, end) needs, and where in them that lies."""
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
        """None: what the transform keeps is not known."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """What the transform makes of the picture: [channels, h, w]."""
        tensor = self._transform(picture)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            came = f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"image_processing: expected a tensor [channels, height, width], got {came}")
        return tensor
