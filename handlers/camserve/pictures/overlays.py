"""An answer's explanations drawn over the picture: one picture of them all, or an overlay in each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import PICTURES, Answer, Explanation, Options
from camserve.pictures import captions, render
from camserve.pictures.bounds.limits import Quota
from camserve.pictures.files.modes import convert_to_rgb

_LARGE = 1_000_000
"""Pixels from which on a picture is copied in strips: `np.asarray` has all of them in memory twice more meanwhile."""

_STRIP = 256
"""Rows of a strip."""


@dataclass(frozen=True)
class Canvas:
    """A picture at the size at which explanations are drawn over it.

    Attributes:
        pixels: `[H, W, 3]`, uint8, RGB; drawing leaves them as they are.
        view: the rectangle that the heatmaps cover, in these pixels.
        scale: the longer side relative to that of the picture that came, at most 1.
    """

    pixels: NDArray[np.uint8]
    view: Rect
    scale: float = 1.0


def wants_drawing(options: Options) -> bool:
    """Return True if the options ask for a picture, or for an overlay in each explanation."""
    return options.media in PICTURES or options.overlay


NOTHING = "no label reaches the threshold"
"""Stands over a picture of which nothing is explained, so that it looks like no finding."""


def prepare_canvas(picture: Image.Image, view: Rect | None, max_side: int) -> Canvas:
    """Copy the picture's pixels, scaled down where the longer side exceeds `max_side` pixels.

    Args:
        picture: in mode RGB, or grey, which is drawn on as it looks.
        view: the rectangle that the heatmaps cover, in the picture's pixels; None: not known, and taken for all of it.
    """
    pixels, scale = render.fit(_pixels(convert_to_rgb(picture)), max_side)
    height, width = pixels.shape[:2]
    place = Rect(0, 0, width, height) if view is None else view.scaled(width / picture.width, height / picture.height)
    return Canvas(pixels, place, scale)


def draw_explanations(answer: Answer, canvas: Canvas, options: Options, quota: Quota) -> Answer:
    """Return the answer with its picture where `options.media` is one, else with an overlay (PNG) in each explanation.

    Args:
        quota: the bytes that the overlays of all answers to one request may take; the one picture of an answer does not count.

    Raises:
        RequestError: 413 `ResponseTooLarge`, as soon as the overlays exceed the quota, or for a picture whose sides exceed
            what its format allows.
    """
    if options.media in PICTURES:
        pictures = [_overlay(canvas, explanation, options) for explanation in answer.explanations]
        if not pictures:
            bare = render.draw_overlay(canvas.pixels, np.zeros((1, 1), np.float32), canvas.view, options.colormap, 0.0)
            whole = captions.join_side_by_side([bare], [NOTHING])
        else:
            whole = pictures[0]
        if len(pictures) > 1:
            texts = [captions.caption(explanation.label, explanation.target) for explanation in answer.explanations]
            whole = captions.join_side_by_side(pictures, texts)
        return replace(answer, picture=render.encode(whole, options.media), scale=canvas.scale)
    explanations = []
    for explanation in answer.explanations:
        check_quota(quota)
        overlay = render.encode(_overlay(canvas, explanation, options), "png")
        quota.take(-(-len(overlay) // 3) * 4)  # in JSON it is base64
        explanations.append(replace(explanation, overlay=overlay))
    check_quota(quota)
    return replace(answer, explanations=tuple(explanations))


def check_quota(quota: Quota) -> None:
    """Raise 413 `ResponseTooLarge` if an overlay has exceeded the quota."""
    if quota.exceeded:
        way_out = "ask for fewer pictures or targets, or without overlay"
        raise RequestError(413, "ResponseTooLarge", f"the answer takes more than the limit of {quota.total} bytes; {way_out}")


def _overlay(canvas: Canvas, explanation: Explanation, options: Options) -> render.Picture:
    drawn = render.draw_overlay(canvas.pixels, explanation.heatmap, canvas.view, options.colormap, options.opacity)
    for contour in explanation.contours or ():
        render.draw_rings(drawn, [ring for polygon in contour.polygons for ring in polygon], canvas.scale)
    return drawn


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """Copy the pixels `[H, W, 3]` of a picture in mode RGB."""
    width, height = picture.size
    if width * height < _LARGE:
        return np.asarray(picture)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        bottom = min(height, top + _STRIP)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, width, bottom)))
    return pixels
