"""Draws one picture's heatmaps by layer and by method on one sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camserve.capture import Captured, LayerInfo
from camserve.capture.backend import Backend
from camserve.core.config import Config
from camserve.core.geometry import Rect
from camserve.explain.methods import CONTRAST_CLASSES, METHODS, scale_maps
from camserve.pictures import render
from camserve.pictures.captions import load_font, shorten

CELL = 180
"""Longer side of a heatmap on the sheet, in pixels."""

GAP, NAMES, HEAD = 6, 210, 28
"""Pixels between heatmaps; of the column of layers' names; of the row of methods' names."""

_COLUMN = NAMES - 2 * GAP
"""Pixels that a layer's name or class may take. Where it is wider its middle is left out: the end tells layers apart."""

PAPER, INK, FAINT, MARKED = (24, 24, 24), (240, 240, 240), (160, 160, 160), (255, 200, 90)


ABOUT = (
    "What speaks for that class at each layer, by each method, on what the model sees of the picture.",
    "Each heatmap is scaled by its own range; layers nearer to the output stand lower.",
)


@dataclass(frozen=True)
class Shot:
    """A picture as it reaches the model.

    Attributes:
        pixels: the original, RGB `[H, W, 3]`, uint8.
        view: the rectangle of it that the model sees.
        tensor: the model's input `[3, h, w]`.
        name: what the sheet calls it.
    """

    pixels: NDArray[np.uint8]
    view: Rect
    tensor: Tensor
    name: str


def draw_sheet(
    backend: Backend, rows: Sequence[LayerInfo], shot: Shot, *, picked: str, label: Callable[[int], str], style: Config
) -> NDArray[np.uint8]:
    """Draws a row for each layer and a column for each method, all of the most probable class.

    A map that is zero, constant or not finite is marked so.

    Args:
        backend: the model, surveyed.
        rows: the layers.
        shot: the picture.
        picked: name of the default layer, which is marked.
        label: returns the name of a class index.
        style: its colour map and opacity are taken.

    Returns:
        The sheet, RGB `[H, W, 3]`.
    """
    view, placed = _crop(shot)
    height, width = view.shape[:2]
    target, probability = _top(backend, shot.tensor)
    top = height + 2 * GAP
    size = NAMES + len(METHODS) * (width + GAP), top + HEAD + len(rows) * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(Image.fromarray(view), (GAP, GAP))
    title = f"{shot.name}: {' '.join(label(target).split())}, probability {probability:.3f}"
    _write(draw, (width + 3 * GAP, GAP + 14), [(title, INK, 20), *((text, FAINT, 15) for text in ABOUT)], 28)
    for column, method in enumerate(METHODS):
        centre = NAMES + column * (width + GAP) + width / 2
        draw.text((centre, top + HEAD / 2), method, fill=INK, font=load_font(16), anchor="mm")
    for row, info in enumerate(rows):
        at = top + HEAD + row * (height + GAP)
        _write(draw, (GAP, at + 14), _lines(info, picked=info.name == picked), 20)
        for column, (heatmap, warnings) in enumerate(_maps(backend, info.name, shot.tensor)):
            left = NAMES + column * (width + GAP)
            sheet.paste(Image.fromarray(render.draw_overlay(view, heatmap, placed, style.colormap, style.opacity)), (left, at))
            centre = left + width / 2
            draw.text((centre, at + height / 2), " ".join(warnings), fill=INK, font=load_font(16), anchor="mm")
    return np.asarray(sheet)


Line = tuple[str, tuple[int, int, int], int]
"""Text, colour and size."""


def _lines(info: LayerInfo, *, picked: bool) -> list[Line]:
    """Writes the lines beside a layer's heatmaps."""
    layout = info.site.layout
    lines = [
        (shorten(info.name, load_font(16), _COLUMN, middle=True), MARKED if picked else INK, 16),
        (shorten(info.kind, load_font(13), _COLUMN, middle=True), FAINT, 13),
        (f"{layout.channels} channels, {layout.height}x{layout.width} cells", FAINT, 13),
    ]
    return [*lines, ("the rule's choice", MARKED, 13)] if picked else lines


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], lines: Sequence[Line], step: int) -> None:
    for place, (text, ink, size) in enumerate(lines):
        draw.text((at[0], at[1] + step * place), text, fill=ink, font=load_font(size), anchor="lm")


def _crop(shot: Shot) -> tuple[NDArray[np.uint8], Rect]:
    """Crops the picture to what the model sees, at the sheet's size; also returns where the heatmap lies on it."""
    height, width = shot.pixels.shape[:2]
    left, top = max(0, int(shot.view.left)), max(0, int(shot.view.top))
    right, bottom = min(width, round(shot.view.right)), min(height, round(shot.view.bottom))
    crop = shot.pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    scale = CELL / max(crop.shape[:2])
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    scaled = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    edges = (shot.view.left - left, shot.view.top - top, shot.view.right - left, shot.view.bottom - top)
    return np.asarray(scaled, np.uint8), Rect(*(edge * scale for edge in edges))


def _top(backend: Backend, tensor: Tensor) -> tuple[int, float]:
    """Returns the most probable class of an input `[3, h, w]`, and its probability; of values the first, and its value."""
    probabilities = backend.reader.probabilities(backend.capture.forward(tensor[None], ()).values)[0]
    target = 0 if backend.reader.kind == "none" else int(probabilities.argmax())
    return target, float(probabilities[target])


def _maps(backend: Backend, layer: str, tensor: Tensor) -> list[tuple[NDArray[np.float32], tuple[str, ...]]]:
    """Computes each method's heatmap `[h, w]` of the most probable class at one layer, and its warnings, from one pass."""
    captured = backend.capture.forward(tensor[None], [layer])
    order = captured.logits[0].argsort(descending=True)
    if backend.reader.kind == "none":
        order = torch.arange(len(order))
    order = order[: CONTRAST_CLASSES + 1]
    gradients = [_gradient(captured, layer, target) for target in order.unbind()]
    contrasts = torch.stack(gradients[1:], 1) if len(gradients) > 1 else torch.zeros_like(gradients[0])[:, None]
    activation = captured.activation(layer)
    results = []
    for method in METHODS.values():
        maps = method.function(activation, gradients[0], *([contrasts] if method.contrasts else []))
        (heatmap,), _, (warnings,) = scale_maps(maps)
        results.append((heatmap, warnings))
    return results


def _gradient(captured: Captured, layer: str, target: Tensor) -> Tensor:
    return captured.gradients(layer, torch.zeros(1, dtype=torch.long), target[None])
