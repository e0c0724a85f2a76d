"""What a run through a model tells about its layers: which of them have a map, of what shape, and which only pass it on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from camserve.capture.survey.layout import Layout, Order, find_layouts
from camserve.capture.survey.readings import UNKNOWN_GRID, Moments, Output, Readings, infer_orders
from camserve.core.errors import ConfigError
from camserve.core.text import listed, nearest

POOL_INPUT = "pool_input"
"""The name of the pooled layer's input, for a TorchScript archive that has no names of its own."""

PASSING_CLASSES = frozenset(
    {"Identity", "Flatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"}
    | {"AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "LPPool2d"}
)
"""Classes of modules that compute nothing of their own, or that pool: the layer before them is the one to explain."""

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
"""What a model's own code raises when it does not take the pictures."""


@dataclass(frozen=True)
class Site:
    """A layer that can be explained. A module that runs `calls` times in one pass is taken at its last call."""

    layer: str
    calls: int
    layout: Layout


@dataclass(frozen=True)
class LayerInfo:
    """One layer as the survey saw it at its last call.

    Attributes:
        name: the module's path in the model.
        kind: the name of its class.
        shape: of its output.
        calls: how often it ran.
        layout: how the output lies in memory; None where it is no map.
        signed: whether some activations were negative.
        passes_through: whether it only pools, or passes on (perhaps in another order) what an earlier layer computed.
        fault: why it has no map, where it might have one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout | None
    signed: bool
    passes_through: bool = False
    fault: str = ""

    @property
    def cells(self) -> int:
        """Number of cells of the map; 0 without one."""
        return self.layout.height * self.layout.width if self.layout else 0

    @property
    def site(self) -> Site:
        """Where the capture takes the map from."""
        if self.layout is None:
            raise ConfigError(f"layer {self.name} has no spatial map: its output has the shape {list(self.shape)}")
        return Site(self.name, self.calls, self.layout)


@dataclass(frozen=True)
class Survey:
    """All layers that ran, in the order in which they last finished, and the number of the model's outputs.

    `hidden`: layers whose activation cannot be reached; `hint`: why, and what to do, for an error message.
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
        """A layer that has a map.

        Raises:
            ConfigError: no such layer, or it has no spatial map; the nearest layers that have one are named.
        """
        by_name = {info.name: info for info in self.layers}
        if name in by_name and by_name[name].cells > 1:
            return by_name[name]
        maps = [info.name for info in self.maps]
        near = nearest(name, maps) or maps[-3:]
        hint = f"; layers with a map: {listed(near)}" if near else "; this model has no layer with a map"
        if name in self.hidden:
            raise ConfigError(f"layer {name} cannot be reached: {self.hint}{hint}")
        if name in by_name:
            shape = list(by_name[name].shape)
            fault = by_name[name].fault or (UNKNOWN_GRID if len(shape) == 3 else "")
            why = f" ({fault})" if fault else ""
            raise ConfigError(f"layer {name} has no spatial map: its output has the shape {shape}{why}{hint}")
        reason = f": {self.hint}" if self.hint and not self.hidden else ""
        raise ConfigError(f"layer {name} does not exist, or does not run{reason}{hint}")

    def site(self, name: str) -> Site:
        """The site of a layer; raises as `info` does."""
        return self.info(name).site


@dataclass
class SurveyBuilder:
    """Takes what layers give, call by call, and makes the survey of it.

    `batch` pictures of `size` = (height, width) are being looked at; `token_grid` = (h, w) settles how tokens lie, and `usual`
    where maps have their channels, if it is known.
    """

    batch: int
    size: tuple[int, int]
    token_grid: tuple[int, int] | None = None
    usual: Order | None = None
    _outputs: list[Output] = field(default_factory=list)
    _orders: dict[int, Order] = field(default_factory=dict)

    def record(self, name: str, kind: str, output: Tensor | None) -> None:
        """Takes the output of one call; None: it gave no tensor."""
        floating = output is not None and output.is_floating_point() and output.numel() > 0
        shape = tuple(output.shape) if output is not None else None
        self.record_summary(name, kind, shape, Moments.of(output) if floating and output is not None else None)

    def record_summary(self, name: str, kind: str, shape: tuple[int, ...] | None, moments: Moments | None) -> None:
        """Takes what is known of one call's output: its shape, and its moments if it holds floating values."""
        self._outputs.append(Output(name, kind, shape, moments))

    def cells(self, shape: tuple[int, ...], moments: Moments | None) -> int:
        """Number of cells of the map that an output would be by itself; 0: it is none."""
        maps = find_layouts(shape, self.batch, self.size) if moments else ()
        alone = Readings([Output("", "", shape, moments)], self.batch, self.size, self.token_grid)
        layout = maps[0] if maps else alone.all[0].layout
        return layout.height * layout.width if layout else 0

    def ambiguous(self) -> list[int]:
        """Places of the outputs that can be read with their channels first as well as last."""
        return [place for place in self._read().ambiguous if place not in self._orders]

    def learn_orders(self, other: SurveyBuilder) -> None:
        """Takes what a run with pictures of another size tells of them."""
        self._orders |= infer_orders(self._outputs, self.ambiguous(), other._outputs, other.batch, other.size)

    def _read(self) -> Readings:
        return Readings(self._outputs, self.batch, self.size, self.token_grid, orders=self._orders, usual=self.usual)

    def build(self, scores: Tensor, hidden: Collection[str] = (), hint: str = "") -> Survey:
        """The survey of the run that ended in `scores`.

        Raises:
            ConfigError: no layer takes the given `token_grid`.
        """
        readings = self._read()
        readings.check_token_grid()
        calls: dict[str, int] = {}
        seen: dict[str, tuple[LayerInfo, Moments | None]] = {}
        for output, reading in zip(self._outputs, readings.all, strict=True):
            name, layout, moments = output.name, reading.layout, output.moments
            calls[name] = calls.get(name, 0) + 1
            seen.pop(name, None)
            if output.shape is not None:
                passes_through = output.kind in PASSING_CLASSES or _repeats(name, layout, moments, seen.values())
                signed = bool(moments and moments.negative)
                info = LayerInfo(name, output.kind, output.shape, calls[name], layout, signed, passes_through, reading.fault)
                seen[name] = info, moments
        return Survey(tuple(info for info, _ in seen.values()), scores.shape[1], frozenset(hidden), hint)


def _repeats(
    name: str, layout: Layout | None, moments: Moments | None, earlier: Collection[tuple[LayerInfo, Moments | None]]
) -> bool:
    """Whether an earlier layer, not one inside this one, gave the same map."""
    if layout is None or moments is None:
        return False
    shape = (layout.channels, layout.height, layout.width)
    for info, other in earlier:
        if info.layout is None or other is None or info.name.startswith(f"{name}."):
            continue
        if shape == (info.layout.channels, info.layout.height, info.layout.width) and moments.like(other):
            return True
    return False


def resolve_orders(builder: SurveyBuilder, run: Callable[[Tensor, SurveyBuilder], object], pictures: Tensor) -> None:
    """Runs a model again, with smaller pictures or else with larger ones, where outputs of its run can be read in two ways."""
    height, width = builder.size
    for size in ((height // 2, width // 2), (2 * height, 2 * width)):
        if not builder.ambiguous():
            return
        other = SurveyBuilder(builder.batch, size)
        with suppress(*MODEL_ERRORS):  # what was seen before it failed counts
            run(torch.nn.functional.interpolate(pictures, size=size), other)
        builder.learn_orders(other)
