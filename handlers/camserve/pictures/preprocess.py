"""Turns a picture into the model's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect, frame, input_size, resized, view, window
from camserve.pictures.decode import check_pixels
from camserve.pictures.files.modes import Box, convert_to_rgb

_SUPPORT = 3
"""Radius of the widest filter, Lanczos, in pixels of the coarser picture."""


def is_stateless(step: object) -> bool:
    """Return True if a step is made of torchvision's own transforms alone, which may run in several threads."""
    parts = getattr(step, "transforms", ())  # of Compose, RandomApply and their like, in either version
    own = type(step).__module__.startswith("torchvision.") and not hasattr(step, "lambd")
    return own and all(is_stateless(part) for part in parts)


class Preprocess:
    """Turns a picture into the model's input, bit for bit as torchvision's transforms do.

    Equals `Compose([Resize(resize, interpolation), CenterCrop(crop), ToTensor(), Normalize(mean, std)])`: the same
    resampling by Pillow, and the same float32 operations in the same order, in place on one tensor. (Folded into one scale
    and offset they would save 0.1 ms and be off by 5e-7.) One exception: if the resized picture would have more than
    `max_pixels`, because its shorter side is very short, only the part that the crop keeps is resampled. A few pixels in a
    thousand then differ by one level of 255 (by more with `nearest` and `box`, whose weights jump).

    A model of one channel gets grey, as `Grayscale(1)` before `Resize` makes it; grey of 16 bits in full depth, resampled in
    float32. `scale` multiplies between `ToTensor` and `Normalize`.

    Args:
        config: `channels`, `resize`, `crop`, `fit`, `fill`, `interpolation`, `scale`, `mean`, `std`, `max_pixels`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._filter = Image.Resampling[config.interpolation.upper()]
        self._frame = frame(config.resize, config.crop, config.fit)
        self._mean = torch.tensor(config.mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(config.std, dtype=torch.float32).view(-1, 1, 1)

    @staticmethod
    def from_callable(transform: Callable[[Image.Image], torch.Tensor]) -> Preprocess:
        """Wrap a handler's own `image_processing`, which replaces the configured steps; the view is then unknown."""
        return _OwnPreprocess(transform)

    def view(self, width: int, height: int) -> Rect | None:
        """Return the rectangle of a picture of `width` × `height` pixels that reaches the model; None if it is unknown."""
        return view(width, height, self._config.resize, self._config.crop, self._config.fit)

    def input_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the input that a picture of `width` × `height` pixels becomes.

        Of a model that takes tensors alone: of the input that the configured sizes stand for.
        """
        config = self._config
        return config.channels, *input_size(width, height, config.resize, config.crop, config.fit)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return how much of a picture of `width` × `height` pixels keeps what resizing makes of it nearly as it is.

        Twice of what is left in each direction; resizing filters what lies above that away by itself.
        """
        across, down = resized(width, height, self._config.resize, self._config.fit)
        return 2 * across, 2 * down

    def check_channels(self) -> None:
        """Refuse a picture for a model that takes tensors alone.

        Raises:
            RequestError: 400 `UnsupportedFormat`.
        """
        if not self._config.takes_pictures:
            shape = f"[{self._config.channels}][H][W]"
            message = f"data: this model takes tensors {shape} alone, as JSON, in V2 or as an .npy file; got a picture"
            raise RequestError(400, "UnsupportedFormat", message)

    def __call__(self, picture: Image.Image, whole: tuple[int, int] | None = None, part: Box | None = None) -> torch.Tensor:
        """Return the model's input for one picture: float32 `[channels, h, w]`, normalised, contiguous.

        Args:
            picture: in mode RGB; for a model of one channel perhaps in L or I;16.
            whole: (width, height) before it was decoded smaller; None: as it is.
            part: what the whole covers of the picture that was decoded smaller; None: all of it.

        Raises:
            RequestError: 413 `ImageTooLarge` if there is no crop and the resized picture has more than `max_pixels`; 400
                `UnsupportedFormat` if the model takes tensors alone.
        """
        self.check_channels()
        if self._config.channels == 1:
            deep = picture.mode.startswith("I;16")
            picture = Image.fromarray(np.asarray(picture, np.float32)) if deep else picture.convert("L")
            pixels = np.array(self._cut(picture, whole or picture.size, part))[None]
            tensor = torch.from_numpy(pixels).to(torch.float32).div_(65535 if deep else 255)
        else:
            pixels = np.asarray(self._cut(picture, whole or picture.size, part)).transpose(2, 0, 1).copy()
            tensor = torch.from_numpy(pixels).to(torch.float32).div_(255)
        if self._config.scale != 1:
            tensor.mul_(self._config.scale)
        return tensor.sub_(self._mean).div_(self._std)

    def _cut(self, picture: Image.Image, whole: tuple[int, int], part: Box | None) -> Image.Image:
        """Resize and crop the picture, which has the channels that the model takes, as one of the `whole` size would be."""
        config = self._config
        size = resized(*whole, config.resize, config.fit)
        kept = window(*size, self._frame)
        if isinstance(config.resize, int) and size[0] * size[1] > config.max_pixels and size != picture.size:
            if self._frame is None:
                check_pixels(size, config, " after resizing")
            return self._cut_part(picture, size, kept)
        if size != picture.size:
            picture = picture.resize(size, self._filter, part)
        if kept == (0, 0, *size):
            return picture
        padded = kept[0] < 0 or kept[1] < 0 or kept[2] > size[0] or kept[3] > size[1]
        if not padded or not any(config.fill):  # Pillow pads with black
            return picture.crop(kept)
        canvas = self._canvas(picture.mode, kept)
        canvas.paste(picture, (-kept[0], -kept[1]))
        return canvas

    def _canvas(self, mode: str, kept: tuple[int, int, int, int]) -> Image.Image:
        """Return a picture of the size of what is kept, filled."""
        fill = self._config.fill
        colour: Any = tuple(round(255 * share) for share in (fill * 3 if len(fill) == 1 else fill))
        if mode != "RGB":
            colour = 65535 * fill[0] if mode == "F" else round(255 * fill[0])
        return Image.new(mode, (kept[2] - kept[0], kept[3] - kept[1]), colour)

    def _cut_part(self, picture: Image.Image, size: tuple[int, int], kept: tuple[int, int, int, int]) -> Image.Image:
        """Resize and crop without resampling more than is kept; what lies beyond the picture is filled.

        Pillow takes the box in float32, which is exact for small numbers only, so the picture is first cropped to whole
        pixels around it.
        """
        spans = [_span(*args) for args in zip(picture.size, size, kept[:2], kept[2:], strict=True)]
        (left, right, x, x_end), (top, bottom, y, y_end) = spans
        near = picture.crop((left, top, right, bottom))
        canvas = self._canvas(picture.mode, kept)
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

    def input_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the shape that the transform makes of a black picture."""
        channels, rows, columns = self(Image.new("RGB", (width, height))).shape
        return channels, rows, columns

    def check_channels(self) -> None:
        """Accept: whatever the model takes, the transform makes it of a picture."""

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return all of it: what the transform keeps is not known."""
        return width, height

    def __call__(
        self,
        picture: Image.Image,
        whole: tuple[int, int] | None = None,  # noqa: ARG002 all is open
        part: Box | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the transform's result `[channels, h, w]` for a picture in RGB; raises TypeError if it is anything else."""
        tensor = self._transform(convert_to_rgb(picture))
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            came = f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"image_processing: expected a tensor [channels, height, width], got {came}")
        return tensor
