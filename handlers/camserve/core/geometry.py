"""Sizes after resizing, the view, the region: rectangles only, no pixels.

The rules are those of `torchvision.transforms.Resize` and `CenterCrop`, which prepare the stock handler's pictures; where the
longer side is resized and the rest padded, those of timm's `ResizeKeepRatio` and `CenterCropOrPad` (a letterbox).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Size


@dataclass(frozen=True)
class Rect:
    """A rectangle in a picture's pixel edges: (0, 0) is the outer corner of the first pixel, right > left, bottom > top."""

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, across: float, down: float) -> Rect:
        """The same place in a picture that is `across` times as wide and `down` times as high."""
        return Rect(self.left * across, self.top * down, self.right * across, self.bottom * down)

    def rounded(self) -> list[float]:
        """`[left, top, right, bottom]` to two decimals, never -0.0: what JSON shows."""
        return [round(edge, 2) + 0.0 for edge in (self.left, self.top, self.right, self.bottom)]


Ring = tuple[tuple[float, float], ...]
"""Points (x, y), of which the last is the first again."""


@dataclass(frozen=True)
class Contour:
    """Where a heatmap, as it is drawn, reaches a level.

    Attributes:
        polygons: each an outer ring, and rings of the holes in it, in pixels of the original picture and within it. By the
            formula of Gauss outer rings have a positive area and holes a negative one, as GeoJSON has it.
    """

    level: float
    polygons: tuple[tuple[Ring, ...], ...]


@dataclass(frozen=True)
class Inside:
    """What of a map lies inside an area of the original picture; `explain/areas` has the formulas.

    Attributes:
        share: of the map, 0 to 1.
        area: of what the model saw, which share the area covers: what a map that is everywhere equal would have inside.
        peak: whether the centre of the brightest cell lies inside.
    """

    share: float
    area: float
    peak: bool


def resized(width: int, height: int, resize: Size, fit: str = "crop") -> tuple[int, int]:
    """(width, height) in pixels after resizing.

    An int is the shorter side, and the longer one is rounded down (`crop`); both sides (`squash`); or the longer side, and the
    shorter one is rounded to the nearest (`pad`). A pair (height, width) is the size itself, or with `pad` what the picture
    must fit into.
    """
    if resize is None:
        return width, height
    if isinstance(resize, int) and fit == "crop":
        return (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    new_height, new_width = resize if isinstance(resize, tuple) else (resize, resize)
    if fit != "pad":
        return new_width, new_height
    ratio = max(width / new_width, height / new_height)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def frame(resize: Size, crop: Size, fit: str) -> Size:
    """What is cut out, or padded to: `crop`, or where that is none the whole that a letterbox pads to."""
    return resize if crop is None and fit == "pad" else crop


def window(width: int, height: int, crop: Size) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) that `CenterCrop` keeps of a picture of `width` × `height` pixels.

    Half a pixel is rounded to the even offset. Where the crop is larger than the picture it is padded, by one more
    pixel on the right or at the bottom if the difference is odd: left and top are then negative.
    """
    if crop is None:
        return 0, 0, width, height
    crop_height, crop_width = crop if isinstance(crop, tuple) else (crop, crop)
    left, top = _offset(width, crop_width), _offset(height, crop_height)
    return left, top, left + crop_width, top + crop_height


def _offset(side: int, crop: int) -> int:
    return -((crop - side) // 2) if crop > side else round((side - crop) / 2)


def view(width: int, height: int, resize: Size, crop: Size, fit: str = "crop") -> Rect:
    """The rectangle of the original picture of `width` × `height` pixels that reaches the model.

    It lies beyond the picture where the crop pads. 451 × 300, resized to 256 and cropped to 224, gives
    (93.96, 18.75, 357.04, 281.25).
    """
    new_width, new_height = resized(width, height, resize, fit)
    left, top, right, bottom = window(new_width, new_height, frame(resize, crop, fit))
    return Rect(left * width / new_width, top * height / new_height, right * width / new_width, bottom * height / new_height)


def input_size(width: int, height: int, resize: Size, crop: Size, fit: str = "crop") -> tuple[int, int]:
    """(height, width) in pixels of the tensor that a picture of `width` × `height` pixels becomes."""
    left, top, right, bottom = window(*resized(width, height, resize, fit), frame(resize, crop, fit))
    return bottom - top, right - left


def region(heatmap: NDArray[np.float32], view: Rect, width: int, height: int) -> Rect | None:
    """The box around all cells of at least half the heatmap's maximum, which is 1, in the original picture's pixel edges.

    Args:
        heatmap: [h, w] in [0, 1]; its cells divide `view` evenly.
        view: the rectangle that the heatmap covers.
        width, height: of the original picture, to which the box is clipped.

    Returns:
        None for a heatmap without a positive maximum, or when nothing of the box lies on the picture.
    """
    peak = heatmap.max(initial=0)
    if not peak > 0:
        return None
    rows, columns = np.nonzero(heatmap >= peak / 2)
    cell_width = (view.right - view.left) / heatmap.shape[1]
    cell_height = (view.bottom - view.top) / heatmap.shape[0]
    left = max(0.0, view.left + int(columns.min()) * cell_width)
    top = max(0.0, view.top + int(rows.min()) * cell_height)
    right = min(float(width), view.left + (int(columns.max()) + 1) * cell_width)
    bottom = min(float(height), view.top + (int(rows.max()) + 1) * cell_height)
    return Rect(left, top, right, bottom) if left < right and top < bottom else None
