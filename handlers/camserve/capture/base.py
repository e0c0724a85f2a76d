"""The protocols of a kind of model: a `Classifier` is surveyed, its `Capture` runs it, and gives a `Captured` for each pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from camserve.capture.survey.endings import Ending
from camserve.capture.survey.layers import Site, Survey
from camserve.capture.survey.layout import Scale
from camserve.capture.survey.reader import FIRST, OutputReader

Context = Callable[[], AbstractContextManager[object]]
"""Makes the context manager in which a model runs: autocast, or one that does nothing."""

Predict = Callable[[Tensor], object]
"""Runs a model on pictures `[N, 3, H, W]` and returns the model's own output."""


Values = Tensor | Sequence[Tensor]
"""A layer's output as the model lays it out; of a layer with several views, that of each."""


class Captured(Protocol):
    """One forward pass of N pictures. It holds the pass's autograd graph: drop it after use."""

    @property
    def logits(self) -> Tensor:
        """What is explained, `[N, K]`, float32, without a graph; of a plain prediction of a model that ends in a sigmoid or a
        softmax, its values."""
        ...

    @property
    def values(self) -> Tensor:
        """What the model itself gives, `[N, K]`, or `[N, 1]` where one logit makes two classes; float32, without a graph."""
        ...

    def activation(self, layer: str) -> Tensor:
        """Return the layer's activation `[N, C, h, w]`, in the precision in which the model ran, without a graph."""
        ...

    def output(self, layer: str) -> Values:
        """Return the layer's output as the model lays it out, of the shape `site.layout.shape(N)`, without a graph."""
        ...

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer's gradients need no backward pass."""
        ...

    def gradients(self, layer: str, rows: Tensor, targets: Tensor, seed: float = 1.0) -> Tensor:
        """Differentiate logit `targets[m]` of picture `rows[m]` with respect to that picture's activation.

        Args:
            layer: one of the layers that the forward pass was asked for.
            rows: indices of pictures, `[M]`; each at most once, unless the layer has the closed form.
            targets: class indices, `[M]`.
            seed: the gradient that the backward pass starts with; the result is multiplied by it.

        Returns:
            `[M, C, h, w]`, or `[M, C, 1, 1]` where the gradient is the same in every cell.

        Raises:
            RuntimeError: the scores do not depend on the layer.
        """
        ...


class Capture(Protocol):
    """Runs a model, and keeps what explanations of some of its layers need."""

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that `forward` may be asked for."""
        ...

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model once over `pictures` `[N, 3, H, W]`; without `layers` it is a plain prediction.

        Raises:
            RuntimeError: a layer ran another number of times than when it was surveyed.
        """
        ...


@dataclass(frozen=True)
class CaptureSettings:
    """How a capture runs its model.

    Attributes:
        cam_weights: for the layers that meet the CAM condition, their weights `[K, C]` from `find_cam_weights`.
        size: (height, width) of the pictures that `cam_weights` hold for; None: they hold for none.
        predict: what runs in place of the model in a pass without layers (the compiled model); None: the model itself.
        context: makes the context in which the model runs; None: no context.
        reader: how the model's scores are read.
    """

    cam_weights: Mapping[str, Tensor]
    size: tuple[int, int] | None = None
    predict: Predict | None = None
    context: Context | None = None
    reader: OutputReader = FIRST

    def predict_only(self, model: Predict, pictures: Tensor) -> object:
        """Run a pass without layers."""
        return model(pictures) if self.predict is None else self.predict(pictures)

    def scale_of(self, pictures: Tensor) -> Scale | None:
        """Return how many times as high and as wide as `size` the pictures `[N, 3, H, W]` are; None without a size."""
        return (pictures.shape[2] / self.size[0], pictures.shape[3] / self.size[1]) if self.size else None

    def cam_weights_for(self, pictures: Tensor) -> Mapping[str, Tensor]:
        """Return the CAM weights that hold for the pictures `[N, 3, H, W]`."""
        return self.cam_weights if self.size == tuple(pictures.shape[2:]) else {}


class Classifier(Protocol):
    """A loaded model of one kind (eager, TorchScript, exported, an ONNX graph): how it is surveyed, tried and captured.

    Attributes:
        reader: how its scores are read; whoever opens the model finds that out.
        batch: fewest and most pictures that it takes at once; None: there is no limit. Whoever opens the model sees to it that a
            picture's scores do not depend on the others.
        clips: whether it clips them to a range that a calibration has found, so that their range tells nothing of what made them.
    """

    reader: OutputReader
    batch: tuple[int, int | None]
    clips: bool

    @property
    def kind(self) -> str:
        """`eager`, `torchscript`, `exported` or `onnx`."""
        ...

    def run(self, pictures: Tensor) -> object:
        """Run the model over `[N, 3, H, W]`, and return what it gives."""
        ...

    def find_ending(self, pictures: Tensor) -> Ending:
        """Find the function that makes the scores of pictures `[N, 3, H, W]`; "" where none is, or it cannot be looked behind."""
        ...

    def survey(self, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
        """Run the model over `pictures` `[N, 3, H, W]` and describe every layer that ran.

        Args:
            token_grid: rows and columns of a transformer's tokens, and how many others stand before them, as far as the
                configuration gives them.
        """
        ...

    def capture(self, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> Capture:
        """Make a capture at these layers."""
        ...

    def run_with(self, site: Site, pictures: Tensor, values: Values) -> Tensor:
        """Run the model with the output of the layer's calls that are taken replaced; return the scores `[N, K]`.

        Args:
            pictures: `[N, 3, H, W]`, as many as `batch` allows.
            values: of the shape `site.layout.shape(N)`; of several views, one for each or one for all.
        """
        ...

    def run_calls(
        self, layers: Collection[str], pictures: Tensor, replaced: Mapping[tuple[str, int], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Run the model; return the scores `[N, K]` and what each call of these layers gave, in order, as the model lays it out.

        Args:
            pictures: `[N, 3, H, W]`, as many as `batch` allows; where they require a gradient, what is returned has a graph.
            replaced: what the model goes on with in place of the output of a layer's call, which counts from 0.
        """
        ...

    def weights(self) -> Iterable[Tensor]:
        """Return the model's parameters, in order, and its quantized weights."""
        ...

    def quantized_output(self, site: Site, pictures: Tensor) -> Tensor | None:
        """Return the layer's output for pictures `[N, channels, H, W]` as floats where it is quantized; None: it is floats."""
        ...
