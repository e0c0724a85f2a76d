"""The result of a forward pass, and passes in parts where a model takes only so many pictures at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured, Values
from camserve.capture.models.views import join_views
from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import Scale

STRAIGHT = "camserve: straightened"
"""Key under which a norm's node of a graph knows that `straighten_norms` has been there."""

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The format in which channels lie last, by the number of axes."""


@dataclass(frozen=True)
class Pass:
    """One forward pass (`Captured`).

    Attributes:
        sites: the layers that were asked for.
        cam_weights: the weights `[K, C]` of those whose gradients are known in closed form.
        activations: the output of each call that is taken, by its key (`Site.keys`), as the model lays it out, without a graph.
        leaves: for the other layers, what the scores are differentiated with respect to, of the same shape.
        scores: the logits `[N, K]`, with the graph of what is behind the layers.
        own: what the model itself gives.
        scale: of the pictures, in relation to those that were surveyed; None: not known.
    """

    sites: Mapping[str, Site]
    cam_weights: Mapping[str, Tensor]
    activations: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]
    scores: Tensor
    own: Tensor
    scale: Scale | None = None

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return self.scores.detach().float()

    @property
    def values(self) -> Tensor:
        """`[N, K]` or `[N, 1]`, float32."""
        return self.own.detach().float()

    def activation(self, layer: str) -> Tensor:
        """Return the layer's activation `[N, C, h, w]`, without a graph."""
        return self._to_grid(layer, self.activations)

    def _to_grid(self, layer: str, values: Mapping[str, Tensor], *, sums: bool = False) -> Tensor:
        """Return a layer's values as `[N, C, h, w]`; `sums`: they are of the cells, as gradients are, not of places."""
        site = self.sites[layer]
        if not site.views:
            return site.layout.to_grid(values[layer], self.scale)
        grids = [view.layout.to_grid(values[site.keys[view.call]], self.scale) for view in site.views]
        return join_views(site.views, grids, sums=sums)

    def output(self, layer: str) -> Values:
        """Return the layer's output as the model lays it out, without a graph; of several views, that of each."""
        site = self.sites[layer]
        return [self.activations[key] for key in site.keys.values()] if site.views else self.activations[layer]

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer meets the CAM condition."""
        return layer in self.cam_weights

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """Return gradients `[M, C, 1, 1]` in closed form under the CAM condition, else `[M, C, h, w]` by autograd."""
        if self.has_closed_form(layer):
            height, width = self.activation(layer).shape[2:]
            return seed * self.cam_weights[layer][targets][:, :, None, None] / (height * width)
        seeds = torch.zeros_like(self.scores)
        seeds[rows, targets] = seed
        keys = list(self.sites[layer].keys.values())
        if not self.scores.requires_grad or any(key not in self.leaves for key in keys):
            raise RuntimeError(f"the scores have no gradient with respect to layer {layer}")
        if len(self.scores) == 1:
            straighten_norms(self.scores)
        asked = (self.scores * seeds).sum()  # with the seeds as `grad_outputs` torch would import SymPy, 75 MB and a second
        gradients = torch.autograd.grad(asked, [self.leaves[key] for key in keys], retain_graph=True)
        return self._to_grid(layer, dict(zip(keys, gradients, strict=True)), sums=True)[rows]


def values_of(site: Site, values: Values) -> dict[str, Tensor]:
    """Return what replaces each call of a layer that is taken, by its key; a single tensor replaces each of them."""
    keys = site.keys.values()
    several = [values] * len(keys) if isinstance(values, Tensor) else values
    return dict(zip(keys, several, strict=True))


def straighten_norms(output: Tensor) -> None:
    """Let each gradient that reaches a batch norm lie in memory as the norm's input does, in all passes back from `output`.

    Of one picture, a contiguous tensor and one whose channels lie last have strides that torch's batch norm takes for each other
    on the CPU (up to 2.12 at least): where its output goes on as tokens, `flatten(2).transpose(1, 2)`, or comes from such, its
    gradient lies in another way than its input, and what it gives back is shuffled.
    """
    left, seen = [output.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [before for before, _ in node.next_functions]
        marks: Any = node.metadata  # a dict, which torch's types call a method
        if "BatchNorm" in node.name() and STRAIGHT not in marks:
            # a hook that held its node would be a cycle, which keeps the pass's graph until Python next looks for such
            marks[STRAIGHT] = node.register_prehook(partial(_straighten, _find_form(node)))


def _find_form(node: Any) -> torch.memory_format:
    """Return the format in which a norm's input lies."""
    try:
        given = getattr(node, "_saved_input", None)
    except RuntimeError:  # the model has written over it: whoever differentiates this norm is told
        given = None
    if given is None or given.is_contiguous():
        return torch.contiguous_format
    return LAST.get(given.ndim, torch.contiguous_format)


def _straighten(form: torch.memory_format, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if each is None else each.contiguous(memory_format=form) for each in gradients)


def copy_saved_tensors() -> AbstractContextManager[object]:
    """Context manager in which autograd saves copies, so that the model may overwrite the values later."""
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, lambda value: value)


class SplitCapture:
    """A capture whose model takes at least `low` and at most `high` pictures at once (`Capture`).

    More pictures are split into several passes. Fewer are padded with the last one, whose further results are dropped.
    """

    def __init__(self, capture: Capture, low: int, high: int | None) -> None:
        self._capture = capture
        self._low = low
        self._high = high

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return self._capture.sites

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model over `[N, 3, H, W]`, in as many passes as needed."""
        parts = list(torch.split(pictures, self._high or len(pictures)))
        sizes = [len(part) for part in parts]
        parts = [pad_batch(part, self._low) for part in parts]
        return JoinedPasses([self._capture.forward(part, layers) for part in parts], sizes)


def pad_batch(pictures: Tensor, count: int) -> Tensor:
    """Repeat the last of the pictures `[N, 3, H, W]` until there are `count`, if there are fewer."""
    missing = count - len(pictures)
    return torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else pictures


def fit_batch(pictures: Tensor, batch: tuple[int, int | None]) -> Tensor:
    """Pad or cut pictures `[N, 3, H, W]` to what a model takes at once: from `batch[0]` to `batch[1]`, None for no limit."""
    return pad_batch(pictures, batch[0])[: batch[1]]


class JoinedPasses:
    """Several passes as one (`Captured`). Of the i-th pass only the first `sizes[i]` pictures count."""

    def __init__(self, passes: Sequence[Captured], sizes: Sequence[int]) -> None:
        self._passes = passes
        self._sizes = sizes

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return torch.cat([each.logits[:size] for each, size in zip(self._passes, self._sizes, strict=True)])

    @property
    def values(self) -> Tensor:
        """`[N, K]` or `[N, 1]`, float32."""
        return torch.cat([each.values[:size] for each, size in zip(self._passes, self._sizes, strict=True)])

    def activation(self, layer: str) -> Tensor:
        """Return the layer's activation `[N, C, h, w]`, without a graph."""
        return torch.cat([each.activation(layer)[:size] for each, size in zip(self._passes, self._sizes, strict=True)])

    def output(self, layer: str) -> Values:
        """Return the layer's output as the model lays it out, without a graph.

        Raises:
            ValueError: the pictures took more than one pass, or were padded.
        """
        if len(self._passes) > 1 or len(self._passes[0].logits) != self._sizes[0]:
            raise ValueError("a layer's output is that of one pass of as many pictures as the model takes")
        return self._passes[0].output(layer)

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer's gradients need no backward pass."""
        return all(each.has_closed_form(layer) for each in self._passes)

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """Return gradients `[M, C, h, w]` or `[M, C, 1, 1]`, in the order of `rows`."""
        places, gradients = [], []
        start = 0
        for each, size in zip(self._passes, self._sizes, strict=True):
            inside = torch.nonzero((rows >= start) & (rows < start + size)).flatten()
            if len(inside):
                places.append(inside)
                gradients.append(each.gradients(layer, rows[inside] - start, targets[inside], seed))
            start += size
        return torch.cat(gradients)[torch.argsort(torch.cat(places))]
