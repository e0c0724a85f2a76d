"""From an item to the model's input, and from its answer to the pictures in it: where encoded pictures are opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Answer, Encoded, Item, Request
from camserve.explain.explainer import Prediction
from camserve.explain.observer import Observer
from camserve.pictures.bounds.limits import SEND_LESS, Quota
from camserve.pictures.bounds.work import DRAWN, Measure, Weight, share_out
from camserve.pictures.decode import check_limits, measure, weigh
from camserve.pictures.files.mask import check_area, measure_mask
from camserve.pictures.inputs import open_again, open_sized
from camserve.pictures.overlays import Canvas, check_quota, draw_explanations, prepare_canvas, wants_drawing
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.chunks import guard

CONTOUR = 2.0
"""Units of work of one contour."""

CANVAS_PIXELS = 64_000_000
"""Pixels of a batch's pictures that are kept until they are drawn on; those beyond are decoded a second time."""


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
        measure: of its picture, by its header.
        rank: which jobs come first: those of the request with the least work.
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
    measure: Measure = field(default_factory=Measure)
    rank: float = 0.0
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

    def measure(self, requests: Sequence[Request]) -> list[list[Measure] | RequestError]:
        """Measure the pictures of each request of a batch, by their headers, and say which are too much.

        `max_work` is shared twice: before Pillow opens a header, and before it decodes a pixel.

        Returns:
            For each request its pictures' measures, zeros for tensors; or 413 `ImageTooLarge`, they have too many pixels
            together (a picture that is too large by itself does not count, for it is refused by itself); or 413 `TooMuchWork`,
            or 503 `Busy`.
        """
        weights = [[self._weigh(item.image) for item in request.items] for request in requests]
        faults = self.share([[each.header if isinstance(each, Weight) else 0.0 for each in several] for several in weights])
        checks = [sum(item.options.maps for item in each.items if each.explain and item.options.check) for each in requests]
        faults = [fault or extra for fault, extra in zip(faults, self.share_checks(checks), strict=True)]
        measures: list[list[Measure]] = []
        for place, request in enumerate(requests):
            measures.append([] if faults[place] else self._measure(request.items, weights[place]))
            faults[place] = faults[place] or self._check_pixels(measures[place])
        canvases = [self._canvas_of(*each) for each in zip(requests, measures, strict=True)]
        again = sum(map(sum, canvases)) > CANVAS_PIXELS
        works = [
            [] if fault else self._works(request.items, several, drawn, again=again)
            for fault, request, several, drawn in zip(faults, requests, measures, canvases, strict=True)
        ]
        faults = [fault or later for fault, later in zip(faults, self.share(works), strict=True)]
        return [
            fault or [replace(each, work=work) for each, work in zip(*both, strict=True)]
            for fault, *both in zip(faults, measures, works, strict=True)
        ]

    def measure_alone(self, item: Item) -> Measure:
        """Measure a picture that came without a protocol, and may be open already."""
        image: Any = item.image
        if isinstance(image, Image.Image):
            return Measure(image.size, image.width * image.height)
        return self._measure([item], [self._weigh(image)])[0]

    def _check_pixels(self, measures: Sequence[Measure]) -> RequestError | None:
        most, limit = self._config.max_pixels, max(self._config.max_request_pixels, self._config.max_pixels)
        total = sum(each.pixels for each in measures if each.pixels <= most)
        if total <= limit:
            return None
        message = f"expected at most {limit} pixels in all pictures of one request, got {total}: send fewer or smaller ones"
        return RequestError(413, "ImageTooLarge", message)

    def share(self, works: Sequence[Sequence[float]]) -> list[RequestError | None]:
        """Say which requests are too much, by the work of their parts: by themselves, or beside the others of their batch."""
        limit = self._config.max_work
        totals = [sum(each) for each in works]
        met = share_out(limit, totals)
        return [None if met[place] else _too_much(limit, totals[place], works[place]) for place in range(len(works))]

    def share_checks(self, counts: Sequence[int]) -> list[RequestError | None]:
        """Say which requests have more heatmaps to check than one may, or than their batch may together."""
        limit = self._config.max_checks
        met = share_out(limit, counts)
        return [None if each else _too_many_checks(limit, count) for each, count in zip(met, counts, strict=True)]

    def _weigh(self, image: Any) -> Weight | RequestError | None:
        return guard(lambda file: weigh(file.data, self._config), image) if isinstance(image, Encoded) else None

    def _measure(self, items: Sequence[Item], weights: Sequence[Weight | RequestError | None]) -> list[Measure]:
        found = [
            measure(item.image.data, self._config, weight)
            if isinstance(item.image, Encoded) and isinstance(weight, Weight)
            else Measure(fault=weight if isinstance(weight, RequestError) else None)
            for item, weight in zip(items, weights, strict=True)
        ]
        return [self._with_mask(each, item.options.inside) for each, item in zip(found, items, strict=True)]

    def _with_mask(self, picture: Measure, area: Rect | Encoded | None) -> Measure:
        """Add the work of a picture's mask."""
        if not isinstance(area, Encoded):
            return picture
        mask = measure_mask(area, self._config)
        return replace(picture, work=picture.work + mask.work, fault=picture.fault or mask.fault)

    def _canvas_of(self, request: Request, measures: Sequence[Measure]) -> list[float]:
        """Return the pixels on which each item's explanations are drawn; 0 where nothing is drawn."""
        longest = self._config.max_picture_side
        return [
            math.prod(each.size) * min(1.0, longest / max(1, *each.size)) ** 2 if wants_drawing(item.options) else 0.0
            for item, each in zip(request.items if request.explain else (), measures, strict=False)
        ]

    def _works(
        self, items: Sequence[Item], measures: Sequence[Measure], canvases: Sequence[float], *, again: bool
    ) -> list[float]:
        """Return each item's units of work; `again`: pictures that are drawn on may be decoded a second time."""
        works = [each.work for each in measures]
        for place, canvas in enumerate(canvases):
            options = items[place].options
            works[place] *= 2 if again and canvas else 1
            works[place] += canvas / 1e6 * DRAWN[options.media] * options.maps if canvas else 0
            works[place] += CONTOUR * len(options.contours) * options.maps
        return works

    def canvas_quota(self) -> Quota:
        """Return the pixels that may be kept of a batch's pictures."""
        return Quota(CANVAS_PIXELS)

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
            enough = self._preprocess.enough if self._config.fast_jpeg else None
            picture, job.size, part = open_sized(image, self._config, enough)
            whole = (job.size, part) if part else ()  # steps of others may take the picture alone
            job.tensor, job.view = self._preprocess(picture, *whole), self._preprocess.view(*job.size)
        else:
            check_limits(image.data, self._config)
            job.tensor = self._tensor_of(image.data)
            if not job.explain:
                return
            picture, job.size, _ = open_sized(image, self._config)
        if job.explain:
            self._check_asked(job, picture)
        if job.needs_drawing and not canvases.exceeded:
            if picture.size != job.size:  # what is drawn on is the whole picture
                picture = open_again(image, self._config)
            canvas = prepare_canvas(picture, job.view, self._config.max_picture_side)
            if canvases.take(canvas.pixels.shape[0] * canvas.pixels.shape[1]):
                job.canvas = canvas

    def _check_asked(self, job: Job, picture: Image.Image) -> None:
        """Refuse what is asked of places in a picture where they cannot be told."""
        options = job.item.options
        for name in ("inside", "contours"):
            if job.view is None and getattr(options, name):
                message = f"{name}: this archive prepares pictures by steps of its own, so which part the model sees is not known"
                raise RequestError(400, "InvalidOption", message)
        if options.inside is not None:
            check_area(options.inside, picture, job.size or picture.size, self._config)

    def drawing_pixels(self, job: Job) -> int:
        """How many pixels `draw`, or reading a mask, has in memory."""
        if job.size is None or job.prediction is None:
            return 0
        pixels = job.size[0] * job.size[1]
        if not job.needs_drawing:
            return pixels if isinstance(job.item.options.inside, Encoded) else 0
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
                canvas = prepare_canvas(open_again(job.item.image, self._config), job.view, self._config.max_picture_side)
        with observer.stage("render"):
            return draw_explanations(answer, canvas, job.item.options, quota)


def _too_many_checks(limit: int, count: int) -> RequestError:
    if count > limit:
        message = (
            f"check: expected at most {limit} heatmaps to check in one request, got {count}: ask for fewer, or without check"
        )
        return RequestError(413, "TooMuchWork", message)
    message = f"check: the requests of a batch share {limit} checks, and this one asks for {count}: try again later"
    return RequestError(503, "Busy", message)


def _too_much(limit: int, total: float, works: Sequence[float]) -> RequestError:
    dearest = max(range(len(works)), key=lambda place: works[place])
    part = f", {works[dearest]:.0f} of it for instance {dearest}" if len(works) > 1 else ""
    came = f"{total:.0f}{part}"
    if total > limit:
        what = f"expected at most {limit} ms of work on one request's pictures, reading, decoding and drawing, got {came}"
        return RequestError(413, "TooMuchWork", f"{what}: send fewer or smaller pictures, or ask for fewer targets")
    what = f"the requests of a batch share {limit} ms of work on pictures, reading, decoding and drawing; this one's is {came}"
    return RequestError(503, "Busy", f"{what}: {SEND_LESS}")
