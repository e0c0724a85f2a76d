"""From an item to the model's input, and from its answer to the pictures in it: where encoded pictures are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Answer, Encoded, Item
from camserve.explain.observer import Observer
from camserve.pictures.decode import check_limits, count_pixels
from camserve.pictures.limits import Quota
from camserve.pictures.overlays import Canvas, check_quota, draw_explanations, prepare_canvas, wants_drawing
from camserve.pictures.preprocess import Preprocess


@dataclass(frozen=True)
class Hooks:
    """What a handler that subclasses ours replaces.

    `tensor_of` makes the model's input `[3, H, W]` of an item's encoded picture or tensor (a `preprocess` of its own);
    `predictions_of` makes the answer of a prediction of the scores `[K]` (a `postprocess` of its own).
    """

    tensor_of: Callable[[Any], Tensor] | None = None
    predictions_of: Callable[[Tensor], Any] | None = None


@dataclass(frozen=True)
class Prepared:
    """One item, ready for the model.

    Attributes:
        tensor: `[3, H, W]`.
        size: (width, height) of its picture; None: there is none, or nobody asks.
        view: the part of it that the model sees; None: not known.
        canvas: what is drawn on, where there was room to keep it.
    """

    item: Item
    explain: bool
    tensor: Tensor
    size: tuple[int, int] | None = None
    view: Rect | None = None
    canvas: Canvas | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether its answer has pictures."""
        return self.explain and self.size is not None and wants_drawing(self.item.options)


class Pictures:
    """Opens the pictures of one model's requests. A decoded one lives while it is prepared, and is kept only to be drawn on.

    Args:
        opened: an encoded picture's pixels, in mode RGB.
        tensor_of: as `Hooks.tensor_of`.
    """

    def __init__(
        self,
        config: Config,
        preprocess: Preprocess,
        opened: Callable[[Encoded], Image.Image],
        tensor_of: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self._config = config
        self._preprocess = preprocess
        self._opened = opened
        self._tensor_of = tensor_of

    def sizes(self, items: Sequence[Item]) -> list[int]:
        """How many pixels `prepared` has in memory for each item of one request, by the pictures' headers; 0 for tensors.

        Raises:
            RequestError: 413 `ImageTooLarge`, they are too many together. A picture that is too large by itself does not
                count, for it is refused by itself.
        """
        most, limit = self._config.max_pixels, max(self._config.max_request_pixels, self._config.max_pixels)
        sizes = [0 if isinstance(item.image, np.ndarray) else count_pixels(item.image.data, self._config) for item in items]
        total = sum(size for size in sizes if size <= most)
        if total > limit:
            message = f"expected at most {limit} pixels in all pictures of one request, got {total}: send fewer or smaller ones"
            raise RequestError(413, "ImageTooLarge", message)
        return sizes

    def prepared(self, item: Item, kept: Quota, *, explain: bool) -> Prepared:
        """Decodes and preprocesses one item.

        Args:
            kept: the pixels that may be kept of a whole batch. Pictures beyond it are opened again when they are drawn on.
        """
        if isinstance(item.image, np.ndarray):
            return Prepared(item, explain, torch.from_numpy(item.image))
        if self._tensor_of is None:
            picture = self._opened(item.image)
            tensor, view = self._preprocess(picture), self._preprocess.view(*picture.size)
        else:
            check_limits(item.image.data, self._config)
            tensor, view = self._tensor_of(item.image.data), None
            if not explain:
                return Prepared(item, explain, tensor)
            picture = self._opened(item.image)
        entry = Prepared(item, explain, tensor, picture.size, view)
        if not entry.is_drawn or kept.spent:
            return entry
        canvas = prepare_canvas(picture, view, self._config.max_picture_side)
        height, width = canvas.pixels.shape[:2]
        return replace(entry, canvas=canvas) if kept.take(width * height) else entry

    def drawn_pixels(self, entry: Prepared, maps: int) -> int:
        """How many pixels `draw` has in memory for so many maps."""
        if not entry.is_drawn or entry.size is None:
            return 0
        width, height = entry.size
        drawn = min(width * height, self._config.max_picture_side**2) * maps
        return drawn if entry.canvas else max(drawn, width * height)

    def draw(self, answer: Answer, entry: Prepared, quota: Quota, observer: Observer) -> Answer:
        """The answer with its picture, or with an overlay in each explanation, where `entry.is_drawn`.

        Raises:
            RequestError: 413 `ResponseTooLarge`, see `overlays.draw_explanations`.
        """
        check_quota(quota)
        canvas, image = entry.canvas, entry.item.image
        if canvas is None:
            if isinstance(image, np.ndarray):
                raise TypeError("a tensor has no picture to draw over")
            with observer.stage("decode"):
                picture = self._opened(image)
                canvas = prepare_canvas(picture, entry.view, self._config.max_picture_side)
        with observer.stage("render"):
            return draw_explanations(answer, canvas, entry.item.options, quota)
