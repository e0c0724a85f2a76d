"""What a run through a model tells about its layers: which of them have a map, of what shape, and which only pass it on."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from camserve.capture.layout import Layout, layout_of
from camserve.errors import ConfigError, listed, nearest

POOL_INPUT = "pool_input"
"""The name of the pooled layer's input, for a TorchScript archive that has no names of its own."""

PASSING = frozenset(
    {"Identity", "Flatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"}
    | {"AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "LPPool2d"}
)
"""Classes of modules that compute nothing of their own, or that pool: the layer before them is the one to explain."""

SAME = 1e-5
"""How far the moments of two equal maps may be apart, as a share of their root mean square: sums in another order differ."""


@dataclass(frozen=True)
class Site:
    """A layer that can be explained. A module that runs `calls` times in one pass is taken at its last call."""

    layer: str
    calls: int
    layout: Layout


@dataclass(frozen=True)
class Moments:
    """What is kept of an activation: whether some of it is negative, and three means that do not depend on its order.

    The third is there because normalisation gives every activation the same mean and mean square.
    """

    negative: bool
    mean: float
    square: float
    absolute: float

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of any tensor of a floating type."""
        values = values.detach().float()
        square, absolute = float(values.square().mean()), float(values.abs().mean())
        mean = float(values.mean())
        return cls(bool((values < 0).any()), mean, square, absolute)

    def like(self, other: Moments) -> bool:
        """Whether both can be of the same values, in any order."""
        scale = math.sqrt(max(self.square, other.square))
        means = abs(self.mean - other.mean), abs(self.absolute - other.absolute)
        return max(means) <= SAME * scale and abs(self.square - other.square) <= SAME * scale**2


@dataclass(frozen=True)
class LayerInfo:
    """One layer as the survey saw it at its last call.

    `layout` is None where the output is no map; `signed`: some activations were negative; `passes`: it only pools, or passes
    on (perhaps in another order) what an earlier layer computed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout | None
    signed: bool
    passes: bool = False

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
            tokens = " (token_grid says how its tokens lie)" if len(shape) == 3 else ""
            raise ConfigError(f"layer {name} has no spatial map: its output has the shape {shape}{tokens}{hint}")
        reason = f": {self.hint}" if self.hint and not self.hidden else ""
        raise ConfigError(f"layer {name} does not exist, or does not run{reason}{hint}")

    def site(self, name: str) -> Site:
        """The site of a layer; raises as `info` does."""
        return self.info(name).site


@dataclass
class Surveyor:
    """Takes what layers give, call by call, and makes the survey of it.

    `batch` pictures of `size` = (height, width) are being looked at; `token_grid` = (h, w) settles how tokens lie.
    """

    batch: int
    size: tuple[int, int]
    token_grid: tuple[int, int] | None = None
    _calls: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, tuple[LayerInfo, Moments | None]] = field(default_factory=dict)

    def look(self, name: str, kind: str, output: Tensor | None) -> None:
        """Takes the output of one call; None: it gave no tensor."""
        floating = output is not None and output.is_floating_point() and output.numel() > 0
        shape = tuple(output.shape) if output is not None else None
        self.add(name, kind, shape, Moments.of(output) if floating and output is not None else None)

    def add(self, name: str, kind: str, shape: tuple[int, ...] | None, moments: Moments | None) -> None:
        """Takes what is known of one call's output: its shape, and its moments if it holds floating values."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        self._seen.pop(name, None)
        if shape is None:
            return
        layout = layout_of(shape, self.batch, self.size, self.token_grid) if moments else None
        signed = bool(moments and moments.negative)
        info = LayerInfo(name, kind, shape, calls, layout, signed, kind in PASSING or self._repeats(name, layout, moments))
        self._seen[name] = (info, moments)

    def cells(self, shape: tuple[int, ...], moments: Moments | None) -> int:
        """Number of cells of the map that an output would be; 0: it is none."""
        layout = layout_of(shape, self.batch, self.size, self.token_grid) if moments else None
        return layout.height * layout.width if layout else 0

    def _repeats(self, name: str, layout: Layout | None, moments: Moments | None) -> bool:
        """Whether an earlier layer, not one inside this one, gave the same map."""
        if layout is None or moments is None:
            return False
        shape = (layout.channels, layout.height, layout.width)
        for info, other in self._seen.values():
            earlier = info.layout
            if earlier is None or other is None or info.name.startswith(f"{name}."):
                continue
            if shape == (earlier.channels, earlier.height, earlier.width) and moments.like(other):
                return True
        return False

    def found(self, scores: Tensor, hidden: Collection[str] = (), hint: str = "") -> Survey:
        """The survey of the run that ended in `scores`."""
        layers = tuple(info for info, _ in self._seen.values())
        return Survey(layers, scores.shape[1], frozenset(hidden), hint)
