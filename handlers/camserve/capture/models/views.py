"""Several calls of a layer, or several layers, as one map: their channels side by side, each at its place in the picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured, Values
from camserve.capture.survey.layers import View
from camserve.capture.survey.layout import Layout

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


class JoinedCapture:
    """A capture some of whose layers stand for several (`Capture`): the last of each member of a network.

    Args:
        capture: of all of these.
        members: the layers that each such name stands for; none goes into another.
    """

    def __init__(self, capture: Capture, members: Mapping[str, Sequence[str]]) -> None:
        self._capture = capture
        self._members = members

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return [*self._capture.sites, *self._members]

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model once over `[N, C, H, W]`."""
        asked = dict.fromkeys(member for layer in layers for member in self._members.get(layer, (layer,)))
        return _JoinedPass(self._capture.forward(pictures, list(asked)), self._members)


class _JoinedPass:
    """A pass in which a layer may stand for several (`Captured`): the scores are a function of all of their channels."""

    def __init__(self, captured: Captured, members: Mapping[str, Sequence[str]]) -> None:
        self._captured = captured
        self._members = members

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return self._captured.logits

    @property
    def values(self) -> Tensor:
        """`[N, K]` or `[N, 1]`, float32."""
        return self._captured.values

    def activation(self, layer: str) -> Tensor:
        """Return the activation `[N, C of all members, h, w]` on the finest member's grid, without a graph."""
        if layer not in self._members:
            return self._captured.activation(layer)
        return _join([self._captured.activation(member) for member in self._members[layer]])

    def output(self, layer: str) -> Values:
        """Return a layer's output as the model lays it out, without a graph; of several layers, that of each."""
        if layer not in self._members:
            return self._captured.output(layer)
        return [value for each in self._members[layer] for value in _list(self._captured.output(each))]

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer's gradients need no backward pass."""
        return layer not in self._members and self._captured.has_closed_form(layer)

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """Return gradients `[M, C of all members, h, w]`; of a single layer what the capture gives."""
        if layer not in self._members:
            return self._captured.gradients(layer, rows, targets, seed)
        grids = []
        for member in self._members[layer]:
            gradients = self._captured.gradients(member, rows, targets, seed)
            grids.append(gradients.expand(*gradients.shape[:2], *self._captured.activation(member).shape[2:]))
        return _join(grids, sums=True)


def _join(grids: Sequence[Tensor], *, sums: bool = False) -> Tensor:
    views = [View(1, Layout("nchw", grid.shape[2], grid.shape[3], grid.shape[1])) for grid in grids]
    return join_views(views, grids, sums=sums)


def _list(values: Values) -> Sequence[Tensor]:
    return [values] if isinstance(values, Tensor) else values
