"""The pictures that explanations are drawn over: kept no larger than they are drawn, and drawn only while the answer can fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.limits import Quota
from camserve.core.messages import PICTURES, Answer, Options
from camserve.pictures.drawing import drawn
from camserve.pictures.render import fit

_ROWS = 256
"""Of a large picture, copied at a time."""


@dataclass(frozen=True)
class Original:
    """A picture at the size at which it is drawn.

    Attributes:
        view: what the heatmaps cover, in this picture's own pixels; None: not known.
        scale: its size relative to the picture that came.
    """

    picture: Image.Image
    view: Rect | None
    scale: float = 1.0


def is_drawn(options: Options) -> bool:
    """Whether these options ask for a picture, or for an overlay in each explanation."""
    return options.media in PICTURES or options.overlay


def original(picture: Image.Image, view: Rect | None, max_side: int) -> Original:
    """`picture`, its longer side scaled down to `max_side` pixels where it is longer, as `drawing.drawn` does."""
    if max(picture.size) <= max_side:
        return Original(picture, view)
    pixels, scale = fit(_pixels(picture), max_side)
    if view is not None:
        view = view.scaled(pixels.shape[1] / picture.width, pixels.shape[0] / picture.height)
    return Original(Image.fromarray(pixels), view, scale)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """`np.asarray(picture)`, which would have all pixels in memory twice more on its way."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        bottom = min(height, top + _ROWS)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, width, bottom)))
    return pixels


def drawn_on(answer: Answer, found: Original, options: Options, max_side: int, room: Quota) -> Answer:
    """The answer with its picture, or with an overlay in each explanation.

    Args:
        room: the bytes that the overlays of all answers to one request may take.

    Raises:
        RequestError: 413 `ResponseTooLarge`, as soon as the overlays take more than that: they cannot fit any more.
    """
    if options.media in PICTURES:
        return replace(drawn(answer, found.picture, found.view, options, max_side), scale=found.scale)
    explanations = []
    for explanation in answer.explanations:
        check_room(room)
        alone = replace(answer, explanations=(explanation,))
        (each,) = drawn(alone, found.picture, found.view, options, max_side).explanations
        room.take(-(-len(each.overlay or b"") // 3) * 4)  # in JSON it is base64
        explanations.append(each)
    check_room(room)
    return replace(answer, explanations=tuple(explanations))


def check_room(room: Quota) -> None:
    """Raises 413 `ResponseTooLarge` where not everything has fitted."""
    if room.spent:
        way_out = "ask for fewer pictures or targets, or without overlay"
        raise RequestError(413, "ResponseTooLarge", f"the answer takes more than the limit of {room.total} bytes; {way_out}")
