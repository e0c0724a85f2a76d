"""What the papers and the contract say, literally: float64, one position at a time, as slow as it is plain.

Every map is of one picture: activations and gradients `[C, h, w]` in, `[h, w]` out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import floor

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def gradcam_plus_plus(activations: ArrayLike, gradients: ArrayLike, *, rectify_sum: bool = False, epsilon: float = 0.0) -> Floats:
    """Chattopadhay et al. 2018 (arXiv 1710.11063), equations 19 and 5, and the rectified sum of 7, for a piecewise linear logit.

    A position whose gradient is 0 has weight 0, where equation 19 is 0 / 0.

    Args:
        rectify_sum: sums the channel's positive activations only, as `camserve.explain.methods` does for signed activations.
        epsilon: added to equation 19's denominator, as pytorch-grad-cam does; the paper has none.
    """
    a, g = _pair(activations, gradients)
    channels, height, width = a.shape
    weights = np.zeros(channels)
    for k in range(channels):
        total = 0.0
        for i, j in product(range(height), range(width)):
            total += max(a[k, i, j], 0.0) if rectify_sum else a[k, i, j]
        for i, j in product(range(height), range(width)):
            if g[k, i, j] == 0:
                continue
            alpha = g[k, i, j] ** 2 / (2 * g[k, i, j] ** 2 + total * g[k, i, j] ** 3 + epsilon)
            weights[k] += alpha * max(g[k, i, j], 0.0)
    return _map(lambda k, i, j: weights[k] * a[k, i, j], a)


def gradcam(activations: ArrayLike, gradients: ArrayLike) -> Floats:
    """Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2."""
    a, g = _pair(activations, gradients)
    channels, height, width = a.shape
    weights = [sum(g[k, i, j] for i, j in product(range(height), range(width))) / (height * width) for k in range(channels)]
    return _map(lambda k, i, j: weights[k] * a[k, i, j], a)


def hirescam(activations: ArrayLike, gradients: ArrayLike) -> Floats:
    """Draelos and Carin 2020 (arXiv 2011.08891): the sum over channels of gradient times activation, rectified."""
    a, g = _pair(activations, gradients)
    return _map(lambda k, i, j: g[k, i, j] * a[k, i, j], a)


def layercam(activations: ArrayLike, gradients: ArrayLike) -> Floats:
    """Jiang et al. 2021: each position weighted by its own rectified gradient."""
    a, g = _pair(activations, gradients)
    return _map(lambda k, i, j: max(g[k, i, j], 0.0) * a[k, i, j], a)


def xgradcam(activations: ArrayLike, gradients: ArrayLike) -> Floats:
    """Fu et al. 2020 (arXiv 2008.02312): gradients averaged with the activations as weights; 0 for a channel that sums to 0."""
    a, g = _pair(activations, gradients)
    channels, height, width = a.shape
    weights = np.zeros(channels)
    for k in range(channels):
        total = sum(a[k, i, j] for i, j in product(range(height), range(width)))
        for i, j in product(range(height), range(width)):
            weights[k] += g[k, i, j] * a[k, i, j] / total if total else 0.0
    return _map(lambda k, i, j: weights[k] * a[k, i, j], a)


def finer_cam(activations: ArrayLike, gradients: ArrayLike, contrasts: Sequence[ArrayLike], gamma: float = 1.0) -> Floats:
    """Zhang et al. 2025 (arXiv 2501.11309): Grad-CAM of `y_target - gamma y_contrast`, averaged over the contrast classes, then rectified."""
    a, g = _pair(activations, gradients)
    channels, height, width = a.shape
    weights = np.zeros(channels)
    for contrast in contrasts:
        other = _pair(activations, contrast)[1]
        for k, i, j in product(range(channels), range(height), range(width)):
            weights[k] += (g[k, i, j] - gamma * other[k, i, j]) / (height * width) / len(contrasts)
    return _map(lambda k, i, j: weights[k] * a[k, i, j], a)


MAPS: dict[str, Callable[..., Floats]] = {
    "gradcam++": gradcam_plus_plus,
    "gradcam": gradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "xgradcam": xgradcam,
    "contrast": finer_cam,
}
"""By the method's name; `contrast` takes the contrast classes' gradients too."""


def refinecam(maps: Sequence[ArrayLike]) -> Floats:
    """Domeniconi et al. 2026 (arXiv 2605.14641): the maps `[h, w]`, each over its maximum, drawn on the finest grid, multiplied."""
    found = [np.asarray(each, np.float64) for each in maps]
    height, width = max(each.shape[0] for each in found), max(each.shape[1] for each in found)
    whole = (0.0, 0.0, float(width), float(height))
    shares = [each / each.max() if each.max() > 0 else each for each in found]
    drawn = np.ones((height, width))
    for i, j in product(range(height), range(width)):
        for each in shares:
            drawn[i, j] *= bilinear(each, j + 0.5, i + 0.5, whole)
    return drawn


def heatmap(found: ArrayLike) -> Floats:
    """`(map - min) / (max - min)`, for a map that is neither constant nor zero."""
    values = np.asarray(found, np.float64)
    return (values - values.min()) / (values.max() - values.min())


def colour(value: float, colormap: str) -> Floats:
    """The colour `[3]` (red, green, blue; 0 to 255) of a value in [0, 1], linear between the colours of OpenCV's table."""
    place = value * 255
    low = floor(place)
    high = min(low + 1, 255)
    return _entry(low, colormap) + (place - low) * (_entry(high, colormap) - _entry(low, colormap))


def bilinear(heat: ArrayLike, x: float, y: float, view: tuple[float, float, float, float]) -> float:
    """The heatmap at the point (x, y) of a picture whose rectangle `view` (left, top, right, bottom) it covers."""
    values = np.asarray(heat, np.float64)
    height, width = values.shape
    left, top, right, bottom = view
    column = min(max((x - left) / (right - left) * width - 0.5, 0), width - 1)
    row = min(max((y - top) / (bottom - top) * height - 0.5, 0), height - 1)
    j, i = floor(column), floor(row)
    across, down = column - j, row - i
    j_next, i_next = min(j + 1, width - 1), min(i + 1, height - 1)
    upper = (1 - across) * values[i, j] + across * values[i, j_next]
    lower = (1 - across) * values[i_next, j] + across * values[i_next, j_next]
    return float((1 - down) * upper + down * lower)


def overlay(
    picture: ArrayLike, heat: ArrayLike, view: tuple[float, float, float, float], colormap: str, opacity: float
) -> Floats:
    """The contract's picture, not rounded: blended where a pixel's centre is inside `view`, half as bright elsewhere."""
    pixels = np.asarray(picture, np.float64)
    left, top, right, bottom = view
    drawn = pixels / 2
    for row, column in product(range(pixels.shape[0]), range(pixels.shape[1])):
        x, y = column + 0.5, row + 0.5
        if left <= x < right and top <= y < bottom:
            value = bilinear(heat, x, y, view)
            drawn[row, column] = (1 - opacity) * pixels[row, column] + opacity * colour(value, colormap)
    return drawn


@cache
def _entry(index: int, colormap: str) -> Floats:
    if colormap == "gray":
        return np.full(3, float(index))
    table = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    blue, green, red = cv2.applyColorMap(np.full((1, 1), index, np.uint8), table)[0, 0]
    return np.array([red, green, blue], np.float64)


def _pair(activations: ArrayLike, gradients: ArrayLike) -> tuple[Floats, Floats]:
    a = np.asarray(activations, np.float64)
    return a, np.broadcast_to(np.asarray(gradients, np.float64), a.shape)


def _map(term: Callable[[int, int, int], float], a: Floats) -> Floats:
    """`relu(sum_k term(k, i, j))` at each position."""
    channels, height, width = a.shape
    found = np.zeros((height, width))
    for i, j in product(range(height), range(width)):
        found[i, j] = max(sum(term(k, i, j) for k in range(channels)), 0.0)
    return found
