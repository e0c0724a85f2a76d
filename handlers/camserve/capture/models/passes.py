"""What is left of a forward pass, and how a pass is made of several where a model takes only so many pictures at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured
from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import Scale


@dataclass(frozen=True)
class Pass:
    """One forward pass (`Captured`).

    Attributes:
        sites: the layers that were asked for.
        heads: the weights `[K, C]` of those whose gradients are known in closed form.
        activations: each layer's output as it is, without a graph.
        sources: for the other layers, what the scores are differentiated with respect to, of the same shape.
        scores: `[N, K]`, with the head's graph.
        scale: how many times as high and as wide the pictures are as those that were surveyed; None: not known.
    """

    sites: Mapping[str, Site]
    heads: Mapping[str, Tensor]
    activations: Mapping[str, Tensor]
    sources: Mapping[str, Tensor]
    scores: Tensor
    scale: Scale | None = None

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return self.scores.detach().float()

    def activation(self, layer: str) -> Tensor:
        """`[N, C, h, w]`, without a graph."""
        return self.sites[layer].layout.to_grid(self.activations[layer], self.scale)

    def has_closed_form(self, layer: str) -> bool:
        """Whether the layer's gradients are rows of the head's weights."""
        return layer in self.heads

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """`[M, C, h, w]` by autograd over the head, or `[M, C, 1, 1]` in closed form where the head is pooled and linear."""
        if self.has_closed_form(layer):
            height, width = self.activation(layer).shape[2:]
            return seed * self.heads[layer][targets][:, :, None, None] / (height * width)
        seeds = torch.zeros_like(self.scores)
        seeds[rows, targets] = seed
        (gradient,) = torch.autograd.grad(self.scores, self.sources[layer], seeds, retain_graph=True)
        return self.sites[layer].layout.to_grid(gradient, self.scale)[rows]


def copy_saved_tensors() -> AbstractContextManager[object]:
    """In which a graph keeps copies of what it needs, so that the model may write into its values afterwards."""
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, lambda value: value)


class SplitCapture:
    """A capture that feeds its model at least `low` and at most `high` pictures at once (`Capture`).

    More are fed in pieces; fewer are filled up with the last picture, whose scores and gradients are then dropped.
    """

    def __init__(self, capture: Capture, low: int, high: int | None) -> None:
        self._capture = capture
        self._low = low
        self._high = high

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._capture.sites

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model over `[N, 3, H, W]`, as often as it takes."""
        parts = list(torch.split(pictures, self._high or len(pictures)))
        sizes = [len(part) for part in parts]
        parts = [pad_batch(part, self._low) for part in parts]
        return JoinedPasses([self._capture.forward(part, layers) for part in parts], sizes)


def pad_batch(pictures: Tensor, count: int) -> Tensor:
    """At least `count` pictures: the last one is repeated."""
    missing = count - len(pictures)
    return torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else pictures


def fit_batch(pictures: Tensor, batch: tuple[int, int | None]) -> Tensor:
    """As many of the pictures as a model takes that takes from `batch[0]` to `batch[1]` at once, filled up if need be."""
    return pad_batch(pictures, batch[0])[: batch[1]]


class JoinedPasses:
    """Several passes as one (`Captured`); of the i-th only the first `sizes[i]` pictures count."""

    def __init__(self, passes: Sequence[Captured], sizes: Sequence[int]) -> None:
        self._passes = passes
        self._sizes = sizes

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return torch.cat([each.logits[:size] for each, size in zip(self._passes, self._sizes, strict=True)])

    def activation(self, layer: str) -> Tensor:
        """`[N, C, h, w]`, without a graph."""
        return torch.cat([each.activation(layer)[:size] for each, size in zip(self._passes, self._sizes, strict=True)])

    def has_closed_form(self, layer: str) -> bool:
        """Whether the layer's gradients need no backward pass."""
        return all(each.has_closed_form(layer) for each in self._passes)

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """`[M, C, h, w]` or `[M, C, 1, 1]`, in the order of `rows`."""
        places, found = [], []
        start = 0
        for each, size in zip(self._passes, self._sizes, strict=True):
            inside = torch.nonzero((rows >= start) & (rows < start + size)).flatten()
            if len(inside):
                places.append(inside)
                found.append(each.gradients(layer, rows[inside] - start, targets[inside], seed))
            start += size
        return torch.cat(found)[torch.argsort(torch.cat(places))]
