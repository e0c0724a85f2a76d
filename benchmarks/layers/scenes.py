"""Pictures of one shape among distractors, with the box in which the shape lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 32
"""Pixels of a picture's side."""

Colour = tuple[int, int, int]
Canvas = NDArray[np.uint8]


def _disc(canvas: Canvas, x: int, y: int, r: int, colour: Colour) -> None:
    cv2.circle(canvas, (x, y), r, colour, -1)


def _square(canvas: Canvas, x: int, y: int, r: int, colour: Colour) -> None:
    cv2.rectangle(canvas, (x - r, y - r), (x + r, y + r), colour, 2)


def _cross(canvas: Canvas, x: int, y: int, r: int, colour: Colour) -> None:
    cv2.line(canvas, (x - r, y), (x + r, y), colour, 3)
    cv2.line(canvas, (x, y - r), (x, y + r), colour, 3)


def _triangle(canvas: Canvas, x: int, y: int, r: int, colour: Colour) -> None:
    cv2.fillPoly(canvas, [np.array([[x, y - r], [x - r, y + r], [x + r, y + r]])], colour)


SHAPES: tuple[Callable[[Canvas, int, int, int, Colour], None], ...] = (_disc, _square, _cross, _triangle)
"""The classes."""

CLASSES = len(SHAPES)


@dataclass(frozen=True)
class Scenes:
    """Pictures with what they show.

    Attributes:
        pictures: `[N, 3, SIDE, SIDE]`, about -1 to 1.
        classes: the shape of each, `[N]`.
        boxes: left, top, right, bottom of each shape, in pixels, `[N, 4]`.
    """

    pictures: Tensor
    classes: Tensor
    boxes: Tensor


@cache
def draw(count: int, seed: int) -> Scenes:
    """Draw so many pictures, the same for the same seed."""
    random = np.random.default_rng(seed)
    drawn = [_draw_one(random) for _ in range(count)]
    pictures, classes, boxes = zip(*drawn, strict=True)
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Scenes(values.contiguous(), torch.tensor(classes), torch.tensor(boxes))


def _draw_one(random: np.random.Generator) -> tuple[Canvas, int, tuple[int, int, int, int]]:
    """Draw a noisy ground, two lines, three dots and a corner, and one shape over them."""
    ground = random.integers(40, 140, (6, 6, 3)).astype(np.uint8)
    canvas = np.asarray(cv2.resize(ground, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.uint8)
    for _ in range(2):
        ends = random.integers(0, SIDE, 4)
        cv2.line(canvas, (int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3])), _colour(random), 1)
    for _ in range(3):
        x, y = random.integers(2, SIDE - 2, 2)
        cv2.circle(canvas, (int(x), int(y)), 1, _colour(random), -1)
    x, y = (int(each) for each in random.integers(5, SIDE - 5, 2))
    cv2.polylines(canvas, [np.array([[x - 4, y - 4], [x - 4, y + 4], [x + 4, y + 4]])], False, _colour(random), 2)
    shape, r = int(random.integers(CLASSES)), int(random.integers(4, 7))
    x, y = (int(each) for each in random.integers(r + 1, SIDE - r - 1, 2))
    SHAPES[shape](canvas, x, y, r, _colour(random))
    noise = random.normal(0, 8, canvas.shape)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), shape, (x - r, y - r, x + r + 1, y + r + 1)


def _colour(random: np.random.Generator) -> Colour:
    """Draw a colour, bright or dark."""
    bright = random.random() < 0.5
    red, green, blue = random.integers(*((170, 256) if bright else (0, 40)), 3)
    return int(red), int(green), int(blue)
