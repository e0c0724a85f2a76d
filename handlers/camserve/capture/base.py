"""What every kind of model offers: one forward pass, and the gradients of chosen targets at chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from camserve.capture.survey.layers import Site, Survey
from camserve.capture.survey.layout import Scale

Context = Callable[[], AbstractContextManager[object]]
"""Makes the context manager in which a model runs: autocast, or nothing."""

Predict = Callable[[Tensor], object]
"""Answers pictures `[N, 3, H, W]` with the model's own output."""


class Captured(Protocol):
    """One forward pass of N pictures. Whoever holds it holds its graph: let go of it after use."""

    @property
    def logits(self) -> Tensor:
        """Raw class scores `[N, K]`, float32, without a graph."""
        ...

    def activation(self, layer: str) -> Tensor:
        """The layer's activation `[N, C, h, w]`, in the precision in which the model ran, without a graph."""
        ...

    def has_closed_form(self, layer: str) -> bool:
        """Whether the layer's gradients need no backward pass: then a picture may be among `rows` several times."""
        ...

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """The gradient of logit `targets[m]` of picture `rows[m]` with respect to that picture's activation.

        Args:
            layer: one of the layers that the forward pass was asked for.
            rows: `[M]`, each picture at most once, unless `has_closed_form`.
            targets: `[M]`, class indices.
            seed: what the gradient is multiplied by, on the way.

        Returns:
            `[M, C, h, w]`, or `[M, C, 1, 1]` where it is the same in every cell.

        Raises:
            RuntimeError: the scores do not depend on the layer.
        """
        ...


class Capture(Protocol):
    """A model whose layers can be explained."""

    @property
    def sites(self) -> Collection[str]:
        """The layers that `forward` may be asked for."""
        ...

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model once over `pictures` `[N, 3, H, W]`; without `layers` it is a plain prediction.

        Raises:
            RuntimeError: a layer ran another number of times than when it was surveyed.
        """
        ...


@dataclass(frozen=True)
class CaptureSettings:
    """How a capture runs its model.

    Attributes:
        heads: for layers whose head is global average pooling and one linear layer, that layer's weight `[K, C]`: their
            gradients need no backward pass. They hold for pictures of `size` = (height, width).
        predict: what answers a pass without layers; None: the model itself.
        context: in which the model runs.
    """

    heads: Mapping[str, Tensor]
    size: tuple[int, int] | None = None
    predict: Predict | None = None
    context: Context | None = None

    def predict_only(self, model: Predict, pictures: Tensor) -> object:
        """The answer of a pass without layers."""
        return model(pictures) if self.predict is None else self.predict(pictures)

    def scale_of(self, pictures: Tensor) -> Scale | None:
        """How many times as high and as wide these pictures are as those of `size`; None where that is not known."""
        return (pictures.shape[2] / self.size[0], pictures.shape[3] / self.size[1]) if self.size else None

    def cam_weights_for(self, pictures: Tensor) -> Mapping[str, Tensor]:
        """The heads that hold for these pictures."""
        return self.heads if self.size == tuple(pictures.shape[2:]) else {}


class Classifier(Protocol):
    """A loaded classifier of one kind (eager, TorchScript, exported): what a survey, a check and a capture need of it."""

    @property
    def kind(self) -> str:
        """`eager`, `torchscript` or `exported`."""
        ...

    @property
    def batch(self) -> tuple[int, int | None]:
        """Fewest and most pictures that it takes at once; None: as many as there are."""
        ...

    def survey(self, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
        """Runs it once over `pictures` `[N, 3, H, W]` and describes every layer that ran."""
        ...

    def capture(self, sites: Mapping[str, Site], setting: CaptureSettings | None = None) -> Capture:
        """A capture at these layers."""
        ...

    def run_with(self, site: Site, pictures: Tensor, values: Tensor) -> Tensor:
        """The scores `[N, K]` that it gives where the layer's output (at its last call) is `values` instead."""
        ...

    def weights(self) -> Iterable[Tensor]:
        """Its parameters, in order."""
        ...
