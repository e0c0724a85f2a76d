"""What every capture backend offers: one forward pass, and the gradients of chosen targets at chosen layers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from camserve.capture.layout import Layout


@dataclass(frozen=True)
class Site:
    """A layer that can be explained. A module that runs `calls` times in one pass is taken at its last call."""

    layer: str
    calls: int
    layout: Layout


class Captured(Protocol):
    """One forward pass of N pictures. Whoever holds it holds its graph: let go of it after use."""

    @property
    def logits(self) -> Tensor:
        """Raw class scores `[N, K]`, float32, without a graph."""
        ...

    def activation(self, layer: str) -> Tensor:
        """The layer's activation `[N, C, h, w]`, in the precision in which the model ran, without a graph."""
        ...

    def gradients(self, layer: str, rows: Tensor, targets: Tensor) -> Tensor:
        """The gradient of logit `targets[m]` of picture `rows[m]` with respect to that picture's activation.

        Args:
            layer: one of the layers that the forward pass was asked for.
            rows: `[M]`, each picture at most once.
            targets: `[M]`, class indices.

        Returns:
            `[M, C, h, w]`, or `[M, C, 1, 1]` where it is the same in every cell.
        """
        ...


class Capture(Protocol):
    """A model whose layers can be explained."""

    @property
    def sites(self) -> Collection[str]:
        """The layers that `forward` may be asked for."""
        ...

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model once over `pictures` `[N, 3, H, W]`; without `layers` it is a plain prediction."""
        ...
