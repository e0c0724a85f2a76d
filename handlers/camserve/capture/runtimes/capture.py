"""Captures a model that an engine runs: the trunk there, and where the gradients have no closed form, the head in torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from camserve.capture.base import Capture, Captured, CaptureSettings, Values
from camserve.capture.models.passes import Pass
from camserve.capture.runtimes.engines import Engine
from camserve.capture.survey.layers import Site
from camserve.capture.survey.outputs import read_scores
from camserve.capture.survey.reader import Scores


class RuntimePass:
    """A forward pass of an engine (`Captured`). A head runs when gradients are first asked for, so predictions pay for none.

    Args:
        given: what the engine gave.
        heads: run the heads of those layers whose gradients have no closed form.
        behind: of a model that ends in a sigmoid or a softmax, the logits are what goes into it, which only a head tells.
        run: heads that have run.
    """

    def __init__(
        self, given: Pass, heads: Mapping[str, Callable[[], Pass]], *, behind: bool, run: Mapping[str, Pass] | None = None
    ) -> None:
        self._given = given
        self._heads = heads
        self._behind = behind
        self._run = dict(run or {})

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return self._head(next(iter(self._heads))).logits if self._behind and self._heads else self._given.logits

    @property
    def values(self) -> Tensor:
        """`[N, K]` or `[N, 1]`, float32."""
        return self._given.values

    def activation(self, layer: str) -> Tensor:
        """Return the layer's activation `[N, C, h, w]`, without a graph."""
        return self._given.activation(layer)

    def output(self, layer: str) -> Values:
        """Return the layer's output as the model lays it out, without a graph."""
        return self._given.output(layer)

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer meets the CAM condition."""
        return self._given.has_closed_form(layer)

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """Return gradients `[M, C, 1, 1]` in closed form under the CAM condition, else `[M, C, h, w]` of the head."""
        source = self._head(layer) if layer in self._heads else self._given
        return source.gradients(layer, rows, targets, seed)

    def _head(self, layer: str) -> Pass:
        if layer not in self._run:
            self._run[layer] = self._heads[layer]()
        return self._run[layer]


class NamesSide(Protocol):
    """A tensor that a head takes beside the layer."""

    @property
    def name(self) -> str:
        """How a runtime's output names it."""
        ...


class RunsHead(Protocol):
    """What is behind a layer, up to the scores, in torch."""

    @property
    def sides(self) -> Sequence[NamesSide]:
        """What it takes beside the layer."""
        ...

    def run(self, pictures: Tensor, outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Scores]:
        """Run it over what a runtime gave for `[N, C, H, W]`; return the leaves by their keys, and the scores."""
        ...


@dataclass(frozen=True)
class RuntimeCapture:
    """Captures a model in an engine (`Capture`); pictures of another size, and layers that the engine does not give, in torch.

    Attributes:
        inner: captures the model in torch.
        engine: computes scores and layers.
        given: the sites of the layers that the engine gives.
        heads: of those whose gradients have no closed form.
        settings: how the model is run.
        shape: `[C, H, W]` of the pictures that the engine takes; None: of any size.
    """

    inner: Capture
    engine: Engine
    given: Mapping[str, Site]
    heads: Mapping[str, RunsHead]
    settings: CaptureSettings
    shape: tuple[int, ...] | None

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return self.inner.sites

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model once over `[N, C, H, W]`."""
        if self.shape not in (None, tuple(pictures.shape[1:])) or not set(layers) <= self.given.keys():
            return self.inner.forward(pictures, layers)
        asked = {layer: self.given[layer] for layer in layers}
        weights = self.settings.cam_weights_for(pictures)
        heads = {layer: self.heads[layer] for layer in asked if layer not in weights}
        names = [key for site in asked.values() for key in site.keys.values()]
        names += [side.name for head in heads.values() for side in head.sides]
        names, scale, reader = list(dict.fromkeys(names)), self.settings.scale_of(pictures), self.settings.reader
        part = self.engine.part
        if part is not None and heads and heads.keys() == asked.keys() and part.names.issuperset(names):
            outputs = part.run(pictures, names)  # the head, which is differentiated anyway, gives the scores
            runs = _prepare(heads, asked, pictures, outputs)
            first = next(iter(runs))
            ran = {first: runs[first]()}
            scores = Scores(ran[first].scores, ran[first].own)
        else:
            answer, outputs = self.engine.run(pictures, names)
            runs, ran = _prepare(heads, asked, pictures, outputs), {}
            scores = reader.complete(read_scores(answer, len(pictures), (), reader.width))
        return RuntimePass(Pass(asked, weights, outputs, {}, *scores, scale), runs, behind=reader.reached, run=ran)


def _prepare(
    heads: Mapping[str, RunsHead], asked: Mapping[str, Site], pictures: Tensor, outputs: Mapping[str, Tensor]
) -> dict[str, Callable[[], Pass]]:
    return {layer: partial(_run_head, head, asked[layer], pictures, outputs) for layer, head in heads.items()}


def _run_head(head: RunsHead, site: Site, pictures: Tensor, outputs: Mapping[str, Tensor]) -> Pass:
    leaves, scores = head.run(pictures, outputs)
    return Pass({site.layer: site}, {}, outputs, leaves, *scores)
