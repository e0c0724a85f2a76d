"""Text beside pictures: captions above those that stand side by side, in Pillow's built-in font."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from camserve.pictures.render import Picture

GAP = 4
"""Pixels between two pictures that stand side by side."""

_PAPER, _INK = (24, 24, 24), (240, 240, 240)
_ELLIPSIS = "…"
_NO_CHARACTER = "\U0010ffff"


def caption(label: str, target: int) -> str:
    """Return a class's label on one line, or `class 17` if it is empty or the font lacks one of its characters."""
    text = " ".join(label.split())
    return text if text and all(map(_has_glyph, set(text))) else f"class {target}"


def join_side_by_side(pictures: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Put pictures of one size next to each other, `GAP` pixels apart, each with its caption on a strip above.

    The strip's height goes by the pictures' height. A caption is shortened to its picture's width, and left out where not
    even an ellipsis fits.

    Args:
        pictures: n of `[H, W, 3]`, uint8, RGB.
        captions: one for each, on one line.

    Returns:
        `[strip + H, n W + (n - 1) GAP, 3]`.
    """
    height, width = pictures[0].shape[:2]
    font = load_font(min(40, max(12, height // 24)))
    strip = int(font.size * 1.6)
    sheet = Image.new("RGB", ((width + GAP) * len(pictures) - GAP, strip), _PAPER)
    draw = ImageDraw.Draw(sheet)
    whole = np.empty((strip + height, sheet.width, 3), np.uint8)
    whole[strip:] = _PAPER
    for left, picture, text in zip(range(0, sheet.width, width + GAP), pictures, captions, strict=True):
        draw.text((left + GAP, strip / 2), shorten(text[:width], font, width - 2 * GAP), fill=_INK, font=font, anchor="lm")
        whole[strip:, left : left + width] = picture
    whole[:strip] = np.asarray(sheet)
    return whole


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int, *, middle: bool = False) -> str:
    """Return `text`, or as much of it as fits into `width` pixels with an ellipsis; empty where not even that fits.

    Args:
        middle: leave out the middle, and not the end.
    """
    if font.getlength(text) <= width:
        return text

    def cut(kept: int) -> str:
        tail = kept // 2 if middle else 0
        return text[: kept - tail].rstrip() + _ELLIPSIS + text[len(text) - tail :]

    fitting = bisect_right(range(len(text)), width, key=lambda kept: math.ceil(font.getlength(cut(kept))))
    return cut(fitting - 1) if fitting else ""


@lru_cache(maxsize=40)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font at a size in pixels."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # with a size it is never the bitmap font


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    """Return False for a character that is drawn as the font's sign for those that it lacks."""
    font = load_font(16)
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))
