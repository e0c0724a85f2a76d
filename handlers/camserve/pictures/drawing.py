"""An answer's explanations drawn over the picture: one picture of them all, or an overlay in each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from camserve.core.geometry import Rect
from camserve.core.messages import PICTURES, Answer, Options
from camserve.pictures import render


def drawn(answer: Answer, original: Image.Image, view: Rect | None, options: Options, max_side: int) -> Answer:
    """The answer with its picture where `options.media` is one, else with an overlay (PNG) in each explanation.

    Args:
        original: the picture, in mode RGB; drawn at its own size, its longer side scaled down to `max_side` pixels.
        view: what the heatmaps cover, in the original's pixels; None: not known, and taken for all of it.
    """
    pixels, scale = render.fit(np.asarray(original), max_side)
    place = _scaled(view, original.size, pixels.shape)
    overlays = [
        render.overlay(pixels, explanation.heatmap, place, options.colormap, options.opacity)
        for explanation in answer.explanations
    ]
    if options.media in PICTURES:
        whole = overlays[0]
        if len(overlays) > 1:
            labels, targets = [each.label for each in answer.explanations], [each.target for each in answer.explanations]
            whole = render.side_by_side(overlays, labels, targets)
        return replace(answer, picture=render.encode(whole, options.media), scale=scale)
    explanations = tuple(
        replace(explanation, overlay=render.encode(picture, "png"))
        for explanation, picture in zip(answer.explanations, overlays, strict=True)
    )
    return replace(answer, explanations=explanations)


def _scaled(view: Rect | None, size: tuple[int, int], shape: tuple[int, ...]) -> Rect:
    """The view in the pixels of the scaled picture; the whole picture where the view is not known."""
    height, width = shape[:2]
    if view is None:
        return Rect(0, 0, width, height)
    return view.scaled(width / size[0], height / size[1])
