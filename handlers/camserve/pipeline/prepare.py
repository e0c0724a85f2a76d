"""From an item to the model's input, and from its answer to the pictures in it: where encoded pictures are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Answer, Item
from camserve.explain.explainer import Prediction
from camserve.explain.observer import Observer
from camserve.pictures.bounds.limits import Quota
from camserve.pictures.decode import check_limits, count_pixels
from camserve.pictures.inputs import open_again
from camserve.pictures.overlays import Canvas, check_quota, draw_explanations, prepare_canvas, wants_drawing
from camserve.pictures.preprocess import Preprocess


@dataclass(frozen=True)
class Hooks:
    """The steps that a handler of a user's own replaces.

    Attributes:
        tensor_of: makes the model's input `[channels, H, W]` of an encoded picture (its own `preprocess`).
        predictions_of: makes the answer of a prediction of the scores `[K]` (its own `postprocess`).
    """

    tensor_of: Callable[[Any], Tensor] | None = None
    predictions_of: Callable[[Tensor], Any] | None = None


@dataclass
class Job:
    """One item of a batch. Each step fills its fields, or sets `error`; later steps pass over a job with an error.

    Attributes:
        call: the position of its call in the batch.
        explain: an explanation is asked for, not only a prediction.
        pixels: how many its picture has, by its header; 0 for a tensor.
        tensor: the model's input `[channels, H, W]`.
        size: (width, height) of the picture; None: there is none, or nobody asks.
        view: the part of the picture that the model sees; None: not known.
        canvas: what is drawn on, where there was room to keep it.
        prediction: what the model says.
        answer: what the client gets.
        error: why there is no answer.
    """

    call: int
    item: Item
    explain: bool
    pixels: int
    tensor: Tensor | None = None
    size: tuple[int, int] | None = None
    view: Rect | None = None
    canvas: Canvas | None = None
    prediction: Prediction | None = None
    answer: Answer | None = None
    error: RequestError | None = None

    @property
    def input(self) -> Tensor:
        """The model's input, once it is prepared."""
        if self.tensor is None:
            raise ValueError("the job is not prepared")
        return self.tensor

    @property
    def needs_drawing(self) -> bool:
        """Whether its answer has pictures."""
        return self.explain and self.size is not None and wants_drawing(self.item.options)


class Pictures:
    """Opens the pictures of one model's requests. A decoded picture lives while it is prepared or drawn on.

    Args:
        tensor_of: as `Hooks.tensor_of`.
    """

    def __init__(self, config: Config, preprocess: Preprocess, tensor_of: Callable[[Any], Tensor] | None = None) -> None:
        self._config = config
        self._preprocess = preprocess
        self._tensor_of = tensor_of

    def count_pixels(self, items: Sequence[Item]) -> list[int]:
        """Count the pixels of each item of one request, by the pictures' headers; 0 for tensors.

        Raises:
            RequestError: 413 `ImageTooLarge`, they are too many together. A picture that is too large by itself does not
                count, for it is refused by itself.
        """
        most, limit = self._config.max_pixels, max(self._config.max_request_pixels, self._config.max_pixels)
        counts = [self._pixels_of(item.image) for item in items]
        total = sum(count for count in counts if count <= most)
        if total > limit:
            message = f"expected at most {limit} pixels in all pictures of one request, got {total}: send fewer or smaller ones"
            raise RequestError(413, "ImageTooLarge", message)
        return counts

    def _pixels_of(self, image: Any) -> int:
        if isinstance(image, np.ndarray):
            return 0
        return image.width * image.height if isinstance(image, Image.Image) else count_pixels(image.data, self._config)

    def prepare(self, job: Job, canvases: Quota) -> None:
        """Decode and preprocess one item.

        Args:
            canvases: the pixels that may be kept of a whole batch; pictures beyond it are opened again when they are drawn on.
        """
        image: Any = job.item.image
        if isinstance(image, np.ndarray):
            job.tensor = torch.from_numpy(image)
            return
        if self._tensor_of is None:
            self._preprocess.check_channels()
            picture = self._open(image)
            job.tensor, job.view = self._preprocess(picture), self._preprocess.view(*picture.size)
        else:
            check_limits(image.data, self._config)
            job.tensor = self._tensor_of(image.data)
            if not job.explain:
                return
            picture = self._open(image)
        job.size = picture.size
        if job.needs_drawing and not canvases.exceeded:
            canvas = prepare_canvas(picture, job.view, self._config.max_picture_side)
            if canvases.take(canvas.pixels.shape[0] * canvas.pixels.shape[1]):
                job.canvas = canvas

    def drawing_pixels(self, job: Job) -> int:
        """How many pixels `draw` has in memory."""
        if not job.needs_drawing or job.size is None or job.prediction is None:
            return 0
        pixels = job.size[0] * job.size[1]
        drawn = min(pixels, self._config.max_picture_side**2) * len(job.prediction.explanations)
        return drawn if job.canvas else max(drawn, pixels)

    def draw(self, job: Job, answer: Answer, quota: Quota, observer: Observer) -> Answer:
        """Return the answer with its picture, or with an overlay in each explanation.

        Raises:
            RequestError: 413 `ResponseTooLarge`, see `overlays.draw_explanations`.
        """
        check_quota(quota)
        canvas = job.canvas
        if canvas is None:
            with observer.stage("decode"):
                canvas = prepare_canvas(self._open(job.item.image), job.view, self._config.max_picture_side)
        with observer.stage("render"):
            return draw_explanations(answer, canvas, job.item.options, quota)

    def _open(self, image: Any) -> Image.Image:
        """Open an encoded picture, or take one that is open already."""
        return open_again(image, self._config)
