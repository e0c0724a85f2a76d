"""Builds the survey of a model from the outputs of one run, call by call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from camserve.capture.survey.layers import MODEL_ERRORS, LayerInfo, Survey
from camserve.capture.survey.layout import Layout, Order, find_layouts, is_proportional
from camserve.capture.survey.readings import Moments, Output, Readings, infer_orders

PASSING_CLASSES = frozenset(
    {"Identity", "Flatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"}
    | {"AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "LPPool2d"}
)
"""Classes of modules that compute nothing of their own, or only pool: the layer before them is the one to explain."""

CONVOLUTIONS = frozenset({"Conv2d"})
"""Classes of modules whose maps lie as the picture does, so that the first of them tells its proportions inside the model."""

REACHING_CLASSES = frozenset({"DeQuantize", "DeQuantStub"})
"""Classes of modules that pass on what was out of a gradient's reach: from there on values are floats, and not quantized."""


@dataclass
class SurveyBuilder:
    """Records the outputs of one run, call by call, and builds the survey from them.

    Attributes:
        batch: number of pictures in the run.
        size: their (height, width).
        token_grid: (rows, columns) of a transformer's tokens, or (rows, columns, others before), where the configuration has it.
        usual: the order of all maps of this model, where it is known.
    """

    batch: int
    size: tuple[int, int]
    token_grid: tuple[int, ...] | None = None
    usual: Order | None = None
    _outputs: list[Output] = field(default_factory=list)
    _orders: dict[int, Order] = field(default_factory=dict)

    def record(self, name: str, kind: str, output: Tensor | None) -> None:
        """Record the output of one call, of any shape; None: it was no tensor."""
        floating = output is not None and output.is_floating_point() and output.numel() > 0
        shape = tuple(output.shape) if output is not None else None
        self.record_summary(name, kind, shape, Moments.of(output) if floating and output is not None else None)

    def record_summary(self, name: str, kind: str, shape: tuple[int, ...] | None, moments: Moments | None) -> None:
        """Record the shape of one call's output, and its moments if it holds floating values."""
        self._outputs.append(Output(name, kind, shape, moments))

    def cells(self, shape: tuple[int, ...], moments: Moments | None) -> int:
        """Return the number of cells of the map that an output would be by itself; 0: it would be none."""
        layouts = find_layouts(shape, self.batch, self.size) if moments else ()
        alone = Readings([Output("", "", shape, moments)], self.batch, self.size, self.token_grid)
        layout = layouts[0] if layouts else alone.all[0].layout
        return layout.height * layout.width if layout else 0

    def ambiguous(self) -> list[int]:
        """Return the places of the outputs that may have their channels first or last."""
        return [place for place in self._read().ambiguous if place not in self._orders]

    def learn_orders(self, other: SurveyBuilder) -> None:
        """Learn from a run with pictures of another size which of the two it is."""
        self._orders |= infer_orders(self._outputs, self.ambiguous(), other._outputs, other.batch, other._inner)

    def _read(self) -> Readings:
        return Readings(self._outputs, self.batch, self._inner, self.token_grid, orders=self._orders, usual=self.usual)

    @property
    def _inner(self) -> tuple[int, int]:
        """The pictures' size, or one of the proportions that the model gives them itself before its first convolution."""
        convolved = [each.shape for each in self._outputs if each.kind in CONVOLUTIONS and each.shape and len(each.shape) == 4]
        maps = [(height, width) for count, _, height, width in convolved if count == self.batch and height * width > 1]
        if not maps or any(is_proportional(cells, self.size) for cells in maps):
            return self.size
        finer = -(-max(self.size) // min(maps[0]))  # no later map may have more cells than the picture has pixels
        return maps[0][0] * finer, maps[0][1] * finer

    def build(self, scores: Tensor, hidden: Collection[str] = (), hint: str = "") -> Survey:
        """Build the survey of the run that ended in `scores` `[N, K]`.

        Raises:
            ConfigError: the given `token_grid` fits no layer.
        """
        readings = self._read()
        readings.check_token_grid()
        layouts: dict[str, tuple[Layout | None, ...]] = {}
        by_name: dict[str, tuple[LayerInfo, Moments | None]] = {}
        for output, reading in zip(self._outputs, readings.all, strict=True):
            name, layout, moments = output.name, reading.layout, output.moments
            layouts[name] = (*layouts.get(name, ()), layout)
            by_name.pop(name, None)
            if output.shape is not None:
                repeats = output.kind not in REACHING_CLASSES and _repeats(name, layout, moments, by_name.values())
                passes_through = output.kind in PASSING_CLASSES or repeats
                signed = bool(moments and moments.negative)
                made = len(layouts[name]), layout, signed, passes_through, reading.fault, layouts[name]
                by_name[name] = LayerInfo(name, output.kind, output.shape, *made), moments
        return Survey(tuple(_prefer_once(list(by_name.values()))), scores.shape[1], frozenset(hidden), hint)


def _prefer_once(layers: Sequence[tuple[LayerInfo, Moments | None]]) -> Iterator[LayerInfo]:
    """Yield the layers; of a module that runs several times and one that runs once, with equal maps, the latter computes it.

    A model that uses one activation module all over has its last map at that module's last call, under a name that says little.
    """
    twins: dict[str, str] = {}
    for place, (once, moments) in enumerate(layers):
        if once.calls == 1 and once.passes_through and once.kind not in PASSING_CLASSES:
            often = [each for each in layers[:place] if each[0].calls > 1 and not each[0].passes_through]
            twin = next((info for info, other in often if _repeats(once.name, once.layout, moments, [(info, other)])), None)
            if twin and twin.name not in twins.values():
                twins[once.name] = twin.name
    for info, _ in layers:
        yield replace(info, passes_through=info.name not in twins) if info.name in {*twins, *twins.values()} else info


def _repeats(
    name: str, layout: Layout | None, moments: Moments | None, earlier: Collection[tuple[LayerInfo, Moments | None]]
) -> bool:
    """Return whether an earlier layer, not one inside this one, gave the same map."""
    if layout is None or moments is None:
        return False
    shape = (layout.channels, layout.height, layout.width)
    for info, other in earlier:
        if info.layout is None or other is None or info.name.startswith(f"{name}."):
            continue
        if shape == (info.layout.channels, info.layout.height, info.layout.width) and moments.match(other):
            return True
    return False


def resolve_orders(builder: SurveyBuilder, run: Callable[[Tensor, SurveyBuilder], object], pictures: Tensor) -> None:
    """Run a model again, with smaller pictures or else with larger ones, where an output may have its channels first or last.

    Cells change with the size of the picture, and channels do not. Without this, layers with about as many channels as rows
    would have to be refused where nothing else tells the two apart.

    Args:
        builder: has recorded the run on `pictures`.
        run: runs the model, and records the run.
        pictures: `[N, 3, H, W]`.
    """
    height, width = builder.size
    for size in ((height // 2, width // 2), (2 * height, 2 * width)):
        if not builder.ambiguous():
            return
        other = SurveyBuilder(builder.batch, size)
        with suppress(*MODEL_ERRORS):  # what was recorded before it failed counts
            run(torch.nn.functional.interpolate(pictures, size=size), other)
        builder.learn_orders(other)
