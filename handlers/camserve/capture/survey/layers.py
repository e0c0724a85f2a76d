"""The survey of a model: its layers in the order in which they ran, and which of them have a map of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from camserve.capture.survey.layout import Layout
from camserve.capture.survey.readings import UNKNOWN_GRID
from camserve.core.errors import ConfigError
from camserve.core.text import find_nearest, join_names

POOL_INPUT = "pool_input"
"""The name of the input of the pooling layer, for a TorchScript archive that has no names of its own."""

MODEL_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
    torch.jit.Error,
)
"""Exceptions that a model's own code may raise when it does not take the pictures."""


@dataclass(frozen=True)
class View:
    """One of several calls of a layer, none of which goes into another: each sees the picture in its own way.

    Attributes:
        call: its number, from 1.
        layout: how its output lies in memory.
        rows, columns: what part of the picture its cells cover, in shares of the height and the width.
    """

    call: int
    layout: Layout
    rows: tuple[float, float] = (0.0, 1.0)
    columns: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Site:
    """A layer that can be explained.

    Attributes:
        layer: its name.
        calls: how often its module runs in one pass; its output is taken at the last call, unless there are `views`.
        layout: how the output lies in memory.
        views: the calls that are taken together, each channel of each as one of the layer's; none: the last call alone.
    """

    layer: str
    calls: int
    layout: Layout
    views: tuple[View, ...] = ()

    @property
    def keys(self) -> dict[int, str]:
        """Under which name the output of which call is kept."""
        return {view.call: f"{self.layer} (call {view.call})" for view in self.views} or {self.calls: self.layer}


@dataclass(frozen=True)
class LayerInfo:
    """One layer, as it was at its last call.

    Attributes:
        name: the module's path in the model.
        kind: the name of its class.
        shape: of its output.
        calls: how often it ran.
        layout: how the output lies in memory; None where it is no map.
        signed: whether some activations were negative.
        passes_through: whether it only pools, or passes on (perhaps in another order) what an earlier layer computed.
        fault: why it has no map, where it might have one.
        layouts: the layout of each call.
        views: the numbers of the calls that are taken together.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout | None
    signed: bool
    passes_through: bool = False
    fault: str = ""
    layouts: tuple[Layout | None, ...] = ()
    views: tuple[int, ...] = ()

    @property
    def cells(self) -> int:
        """Number of cells of the map; 0 without one."""
        return self.layout.height * self.layout.width if self.layout else 0

    @property
    def site(self) -> Site:
        """Where a capture takes the map from.

        Raises:
            ConfigError: the layer has no map.
        """
        if self.layout is None:
            raise ConfigError(f"layer {self.name} has no spatial map: its output has the shape {list(self.shape)}")
        pairs = ((call, self.layouts[call - 1]) for call in self.views)
        return Site(self.name, self.calls, self.layout, tuple(View(call, layout) for call, layout in pairs if layout))


@dataclass(frozen=True)
class Survey:
    """What one run of a model shows.

    Attributes:
        layers: all layers that ran, in the order in which they last finished.
        outputs: number of the model's classes.
        hidden: names of layers whose activation cannot be reached.
        hint: why layers are hidden or missing, and what to do, for an error message.
    """

    layers: tuple[LayerInfo, ...]
    outputs: int
    hidden: Collection[str] = ()
    hint: str = ""

    @property
    def maps(self) -> tuple[LayerInfo, ...]:
        """The layers that have a map of more than one cell."""
        return tuple(info for info in self.layers if info.cells > 1)

    def info(self, name: str) -> LayerInfo:
        """Return a layer that has a map.

        Raises:
            ConfigError: there is no such layer, or it has no spatial map; the message names the nearest layers that have one.
        """
        by_name = {info.name: info for info in self.layers}
        if name in by_name and by_name[name].cells > 1:
            return by_name[name]
        maps = [info.name for info in self.maps]
        near = find_nearest(name, maps) or maps[-3:]
        hint = f"; layers with a map: {join_names(near)}" if near else "; this model has no layer with a map"
        if name in self.hidden:
            raise ConfigError(f"layer {name} cannot be reached: {self.hint}{hint}")
        if name in by_name:
            shape = list(by_name[name].shape)
            fault = by_name[name].fault or (UNKNOWN_GRID if len(shape) == 3 else "")
            why = f" ({fault})" if fault else ""
            raise ConfigError(f"layer {name} has no spatial map: its output has the shape {shape}{why}{hint}")
        reason = f": {self.hint}" if self.hint and not self.hidden else ""
        raise ConfigError(f"layer {name} does not exist, or does not run{reason}{hint}")

    def leave_out(self, names: Collection[str]) -> Survey:
        """Return the survey in which no layer is chosen that lies as one of these does, with as many rows and columns."""
        kinds = {(info.layout.order, *info.layout.grid) for info in self.layers if info.layout and info.name in names}
        left = [
            replace(info, passes_through=True) if info.layout and (info.layout.order, *info.layout.grid) in kinds else info
            for info in self.layers
        ]
        return replace(self, layers=tuple(left))

    def site(self, name: str) -> Site:
        """Return the site of a layer; raises as `info` does."""
        return self.info(name).site
