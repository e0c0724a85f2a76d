"""Pictures of one shape among distractors, or of two of different classes, with the boxes in which the shapes lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        classes: the shape of each that is asked for, `[N]`.
        boxes: left, top, right, bottom of that shape, in pixels, `[N, 4]`.
        others: of the other shape, of another class, where there are two, `[N, 4]`.
    """

    pictures: Tensor
    classes: Tensor
    boxes: Tensor
    others: Tensor | None = None


Box = tuple[int, int, int, int]


@cache
def draw(count: int, seed: int) -> Scenes:
    """Draw so many pictures of one shape, the same for the same seed."""
    random = np.random.default_rng(seed)
    drawn = [_draw_one(random) for _ in range(count)]
    pictures, classes, boxes = zip(*drawn, strict=True)
    return Scenes(_scaled(pictures), torch.tensor(classes), torch.tensor(boxes))


@cache
def draw_two(count: int, seed: int) -> Scenes:
    """Draw so many pictures of two shapes of two classes that do not touch, of which the first is asked for."""
    random = np.random.default_rng(seed)
    drawn = [_draw_pair(random) for _ in range(count)]
    pictures, classes, boxes, others = zip(*drawn, strict=True)
    return Scenes(_scaled(pictures), torch.tensor(classes), torch.tensor(boxes), torch.tensor(others))


def _scaled(pictures: Sequence[Canvas]) -> Tensor:
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def _draw_one(random: np.random.Generator) -> tuple[Canvas, int, Box]:
    """Draw a noisy ground, two lines, three dots and a corner, and one shape over them."""
    canvas = _draw_ground(random)
    shape = int(random.integers(CLASSES))
    x, y, r, box = _place(random)
    SHAPES[shape](canvas, x, y, r, _colour(random))
    return _add_noise(canvas, random), shape, box


def _draw_pair(random: np.random.Generator) -> tuple[Canvas, int, Box, Box]:
    canvas = _draw_ground(random)
    first, second = (int(each) for each in random.choice(CLASSES, 2, replace=False))
    one = other = _place(random)
    while _touch(one[3], other[3]):
        one, other = _place(random), _place(random)
    for shape, (x, y, r, _) in ((first, one), (second, other)):
        SHAPES[shape](canvas, x, y, r, _colour(random))
    return _add_noise(canvas, random), first, one[3], other[3]


def _draw_ground(random: np.random.Generator) -> Canvas:
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
    return canvas


def _place(random: np.random.Generator) -> tuple[int, int, int, Box]:
    """Return the middle, the radius and the box of a shape."""
    r = int(random.integers(4, 7))
    x, y = (int(each) for each in random.integers(r + 1, SIDE - r - 1, 2))
    return x, y, r, (x - r, y - r, x + r + 1, y + r + 1)


def _touch(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) >= max(one[0], other[0]) and min(one[3], other[3]) >= max(one[1], other[1])


def _add_noise(canvas: Canvas, random: np.random.Generator) -> Canvas:
    return np.clip(canvas + random.normal(0, 8, canvas.shape), 0, 255).astype(np.uint8)


def _colour(random: np.random.Generator) -> Colour:
    """Draw a colour, bright or dark."""
    bright = random.random() < 0.5
    red, green, blue = random.integers(*((170, 256) if bright else (0, 40)), 3)
    return int(red), int(green), int(blue)
