"""How much of a map lies in an area of the picture that a client names, in the original picture's pixels.

Each cell counts by the share of its rectangle that lies inside, as for the region: a map drawn smoothly would put much of a
bright cell beyond its edge. The share inside is the energy-based pointing game of Wang et al. 2020 (Score-CAM, arXiv 1910.01279),
who draw maps smoothly; whether the peak lies inside is the pointing game of Zhang et al. 2016 (arXiv 1608.00507).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.core.geometry import Inside, Rect, region
from camserve.core.messages import Encoded, Explanation, ImageInfo, Options
from camserve.explain.contours import trace_contours
from camserve.pictures.bounds.limits import Deadline
from camserve.pictures.files.mask import read_mask

Floats = NDArray[np.float64]
Area = Rect | NDArray[np.bool_]
"""A box, or a mask `[height, width]` of the picture's size, True inside."""

_STRIP = 256
"""Rows of a mask that are added up at a time."""


def weigh_cells(area: Area, view: Rect, size: tuple[int, int], grid: tuple[int, int]) -> Floats:
    """Say which share of each cell of a map lies in an area.

    Args:
        area: what lies beyond the picture counts as outside.
        view: the rectangle that the map covers, in the picture's pixels.
        size: (width, height) of the picture.
        grid: (rows, columns) of the map.

    Returns:
        `[rows, columns]`, 0 to 1 each.
    """
    width, height = size
    if isinstance(area, Rect):
        across = np.clip([area.left, area.right], 0, width)
        down = np.clip([area.top, area.bottom], 0, height)
        rows, columns = _overlap(down, view.top, view.bottom, grid[0]), _overlap(across, view.left, view.right, grid[1])
        return rows.T @ columns
    rows = _overlap(np.arange(height + 1), view.top, view.bottom, grid[0])
    columns = _overlap(np.arange(width + 1), view.left, view.right, grid[1])
    weights = np.zeros(grid)
    for top in range(0, height, _STRIP):
        strip = slice(top, top + _STRIP)
        weights += rows[strip].T @ (area[strip].astype(np.float64) @ columns)
    return weights


def _overlap(edges: NDArray[np.number], low: float, high: float, cells: int) -> Floats:
    """Say which share of each of `cells` equal cells from `low` to `high` lies between each two edges: `[n - 1, cells]`."""
    at = (edges - low) / (high - low) * cells
    shares: Floats = np.diff(np.clip(at[:, None] - np.arange(cells), 0, 1), axis=0)
    return shares


def measure_inside(explanations: Sequence[Explanation], area: Area, view: Rect, size: tuple[int, int]) -> tuple[Explanation, ...]:
    """Say of each explanation that has a map what of it lies in an area; arguments as of `weigh_cells`.

    The map is that before it was scaled: a share of a heatmap, whose least value is 0, would be another.
    """
    found, weights = list(explanations), None
    for place, each in enumerate(found):
        if each.warnings or each.range is None:
            continue
        if weights is None or weights.shape != each.heatmap.shape:
            weights = weigh_cells(area, view, size, each.heatmap.shape)
        low, high = (float(limit) for limit in each.range)
        values = each.heatmap.astype(np.float64) + low / (high - low)
        share = float((weights * values).sum() / values.sum())
        inside = Inside(min(1.0, max(0.0, share)), min(1.0, float(weights.mean())), _has_peak(each.heatmap, area, view, size))
        found[place] = replace(each, inside=inside)
    return tuple(found)


def locate(
    explanations: Sequence[Explanation], image: ImageInfo | None, options: Options, config: Config, deadline: Deadline
) -> tuple[Explanation, ...]:
    """Say where in the original picture each heatmap is bright: its region, and what the options ask of an area and of contours.

    Raises:
        RequestError: as `mask.read_mask`; 503 where time runs out.
    """
    if image is None or image.view is None:
        return tuple(explanations)
    size = image.width, image.height
    found = tuple(replace(each, region=region(each.heatmap, image.view, *size)) for each in explanations)
    if options.inside is not None:
        area = read_mask(options.inside, config) if isinstance(options.inside, Encoded) else options.inside
        found = measure_inside(found, area, image.view, size)
    if not options.contours:
        return found
    traced = []
    for each in found:
        deadline.check("this picture's contours were traced")
        contours = None if each.warnings else trace_contours(each.heatmap, image.view, size, options.contours)
        traced.append(replace(each, contours=contours))
    return tuple(traced)


def _has_peak(heatmap: NDArray[np.float32], area: Area, view: Rect, size: tuple[int, int]) -> bool:
    """Tell whether the centre of the brightest cell, of equal ones the first, lies on the picture and in the area."""
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    x = view.left + (column + 0.5) * (view.right - view.left) / heatmap.shape[1]
    y = view.top + (row + 0.5) * (view.bottom - view.top) / heatmap.shape[0]
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        return False
    if isinstance(area, Rect):
        return bool(area.left <= x < area.right and area.top <= y < area.bottom)
    return bool(area[int(y), int(x)])
