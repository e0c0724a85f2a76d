"""Heatmaps as pictures: coloured, blended over what the model saw, encoded.

Pictures are `[H, W, 3]`, uint8, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from camserve.core.errors import RequestError
from camserve.core.geometry import Rect, Ring
from camserve.pictures import png

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

_COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
"""Those that OpenCV has a table of; `gray` needs none."""

_STEPS = 16
"""Entries of our table for each of the 256 colours of OpenCV's."""

_LAST = 255 * _STEPS

_LINE, _SHIFT = 400, 4
"""A line is as wide as the picture's longer side over this; its points are placed to so many binary digits of a pixel."""

_STRIP = 32_768
"""Pixels that are drawn at a time: what is computed on the way stays in the processor's cache."""

_ENCODERS: dict[str, tuple[str, list[int], int]] = {
    "png": (".png", [], 1_000_000),
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90], 65_500),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 90], 16_383),
}
"""Medium -> (suffix, OpenCV's parameters, longest side that the format or its encoder allows); PNG has a module of its own."""


def apply_colormap(values: NDArray[np.floating], colormap: str) -> Picture:
    """Return the colours `[h, w, 3]` of `values` `[h, w]`, which are clipped to [0, 1].

    `k / 255` has colour `k` of OpenCV's 256, values between are interpolated; `gray` is the value itself.
    """
    return _look_up(np.clip(values, 0, 1) * _LAST, colormap)


def write_colormap(name: str) -> str:
    """Write a colour map's 256 colours as `rrggbb` in hexadecimal, without anything between them."""
    return apply_colormap(np.arange(256)[None] / 255, name).tobytes().hex()


def draw_overlay(picture: Picture, heatmap: Floats, view: Rect, colormap: str, opacity: float) -> Picture:
    """Blend a heatmap over the part of a picture that the model saw, and draw the rest at half brightness.

    The heatmap covers `view` exactly. It is upsampled bilinearly with half-pixel centres, its outer cells extended to the
    edges, and then coloured. A pixel is inside the view if its centre is, the left and top edges included, and becomes
    `(1 - opacity) picture + opacity colour`, rounded. Each result is within one grey level of exact arithmetic.

    Args:
        picture: `[H, W, 3]`; not changed.
        heatmap: `[h, w]` in [0, 1].
        view: in this picture's pixels; edges may be fractions and lie beyond the picture.
        colormap: one of `config.COLORMAPS`.
        opacity: 0 (the picture alone) to 1 (the colours alone).
    """
    rows, columns = _inside(view.top, view.bottom, picture.shape[0]), _inside(view.left, view.right, picture.shape[1])
    drawn = _as_picture(cv2.convertScaleAbs(picture, alpha=0.5), picture.shape)
    if not (rows.size and columns.size):
        return drawn
    cells = _interpolate(heatmap.T * np.float32(_LAST), _positions(columns, view.left, view.right, heatmap.shape[1]))
    cells = np.ascontiguousarray(cells.T)
    positions = _positions(rows, view.top, view.bottom, heatmap.shape[0])
    across = slice(columns[0], columns[-1] + 1)
    step = max(1, _STRIP // columns.size)
    for start in range(0, rows.size, step):
        colours = _look_up(_interpolate(cells, positions[start : start + step]), colormap)
        window = slice(rows[start], rows[start] + len(colours)), across
        part = picture[window]
        drawn[window] = _as_picture(cv2.addWeighted(part, 1 - opacity, colours, opacity, 0), part.shape)
    return drawn


def draw_rings(picture: Picture, rings: Sequence[Ring], scale: float) -> None:
    """Draw closed lines into a picture, white on black, so that they stand out on any colour.

    Args:
        picture: changed in place.
        rings: in pixels of the picture of which this one is `scale` times as large.
    """
    width = max(1, round(max(picture.shape[:2]) / _LINE))
    points = [np.rint((np.array(ring) * scale - 0.5) * (1 << _SHIFT)).astype(np.int32) for ring in rings]
    for colour, thickness in ((0, width + 2), (255, width)):
        cv2.polylines(picture, points, True, (colour,) * 3, thickness, cv2.LINE_AA, _SHIFT)


def fit(picture: Picture, max_side: int) -> tuple[Picture, float]:
    """Average a picture down if its longer side exceeds `max_side`; returns it with the factor, at most 1."""
    height, width = picture.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _as_picture(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), (size[1], size[0], 3)), scale


def encode(picture: Picture, media: str) -> bytes:
    """Encode a picture as `png`, `jpeg` or `webp`, the latter two with quality 90.

    Raises:
        RequestError: 413 `ResponseTooLarge` if a side is longer than that format allows.
    """
    suffix, parameters, longest = _ENCODERS[media]
    height, width = picture.shape[:2]
    if max(height, width) > longest:
        problem = f"the picture would be {width} x {height} pixels; {media} allows {longest} a side"
        raise RequestError(413, "ResponseTooLarge", f"{problem}: ask for fewer targets, or for another format")
    if media == "png":
        return png.encode(picture)
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), parameters)[1].tobytes()


@lru_cache(maxsize=8)
def _table(colormap: str) -> NDArray[np.uint32]:
    """Return the colours of 0, 1 / _LAST, ... 1, each as one number of red, green, blue and a spare byte: one fetch a pixel."""
    levels = np.arange(256, dtype=np.uint8)
    if colormap == "gray":
        colours = np.stack([levels] * 3, 1)
    else:
        colours = _as_picture(cv2.applyColorMap(levels, _COLORMAPS[colormap]), (256, 3))[:, ::-1]
    positions = np.arange(_LAST + 1) / _STEPS
    table = np.zeros((_LAST + 1, 4), np.uint8)
    for channel in range(3):
        table[:, channel] = np.rint(np.interp(positions, levels, colours[:, channel]))
    return table.view(np.uint32)[:, 0]


def _look_up(positions: NDArray[np.floating], colormap: str) -> Picture:
    """Return the colours `[h, w, 3]` at positions `[h, w]` in the table, 0 to _LAST."""
    pixels = np.take(_table(colormap), (positions + 0.5).astype(np.intp), mode="clip")
    height, width = pixels.shape
    return _as_picture(cv2.cvtColor(pixels.view(np.uint8).reshape(height, width, 4), cv2.COLOR_RGBA2RGB), (height, width, 3))


def _as_picture(array: NDArray[Any], shape: tuple[int, ...]) -> Picture:
    """Give what OpenCV returns, which drops axes of length 1, the shape of what it was given."""
    return np.asarray(array, np.uint8).reshape(shape)


def _inside(low: float, high: float, count: int) -> NDArray[np.intp]:
    """Return those of `count` pixels whose centres lie in [low, high)."""
    return np.arange(max(0, math.ceil(low - 0.5)), min(count, math.ceil(high - 0.5)))


def _positions(pixels: NDArray[np.intp], low: float, high: float, count: int) -> NDArray[np.float64]:
    """Return where pixels' centres lie among `count` equal cells from `low` to `high`; 0 is the first cell's centre."""
    positions: NDArray[np.float64] = ((pixels + 0.5 - low) * (count / (high - low)) - 0.5).clip(0, count - 1)
    return positions


def _interpolate(values: Floats, positions: NDArray[np.float64]) -> Floats:
    """Interpolate rows of `values` `[n, m]` linearly at fractional positions, 0 to n - 1: `[positions, m]`."""
    below = positions.astype(np.intp)
    rows = values[np.minimum(below + 1, len(values) - 1)]
    rows -= values[below]
    rows *= (positions - below).astype(np.float32)[:, None]
    rows += values[below]
    return rows
