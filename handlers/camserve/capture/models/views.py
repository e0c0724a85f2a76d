"""Several calls of a layer as one map: their channels side by side, each at its place in the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camserve.capture.survey.layers import View

WHOLE = (0.0, 1.0)


def join_views(views: Sequence[View], grids: Sequence[Tensor], *, sums: bool = False) -> Tensor:
    """Join what several calls gave to one grid over all of the picture, as fine as the finest of them.

    The scores are a function of all of these channels, so a map's weighted sum over them adds the calls up as the scores do.
    What a view does not cover is 0. Between cells is interpolated.

    Args:
        grids: of each view, `[N, C, h, w]`, turned to lie as the picture does.
        sums: whether values are of whole cells, as gradients are: then a cell's value is shared among those that it becomes.

    Returns:
        `[N, C of all views together, rows, columns]`.
    """
    density = [
        (grid.shape[2] / _length(view.rows), grid.shape[3] / _length(view.columns))
        for view, grid in zip(views, grids, strict=True)
    ]
    rows, columns = (max(1, round(max(each[axis] for each in density))) for axis in (0, 1))
    placed = []
    for view, grid, (high, wide) in zip(views, grids, density, strict=True):
        whole = view.rows == view.columns == WHOLE and grid.shape[2:] == (rows, columns)
        values = grid if whole else _place(view, grid, (rows, columns))
        placed.append(values * (high * wide / (rows * columns)) if sums and not whole else values)
    return torch.cat(placed, 1)


def _place(view: View, grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `[N, C, rows, columns]` over all of the picture, 0 where the view does not reach."""
    exact = grid if grid.dtype in (torch.float32, torch.float64) else grid.float()
    axes = []
    for (first, last), count in zip((view.rows, view.columns), size, strict=True):
        middles = (torch.arange(count, device=grid.device, dtype=exact.dtype) + 0.5) / count
        axes.append((middles - first) / (last - first))
    inside = ((axes[0] >= 0) & (axes[0] <= 1))[:, None] & ((axes[1] >= 0) & (axes[1] <= 1))
    places = torch.stack([axes[1].expand(size), axes[0][:, None].expand(size)], -1) * 2 - 1
    placed = torch.nn.functional.grid_sample(
        exact, places.expand(len(grid), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return placed * inside


def _length(span: tuple[float, float]) -> float:
    return span[1] - span[0]
