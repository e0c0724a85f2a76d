"""Heatmaps as pictures: coloured, blended over what the model saw, labelled, encoded. NumPy and OpenCV; Pillow for text.

Pictures are `[H, W, 3]`, uint8, RGB.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.pictures import png

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

SCALES = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
"""The colour maps with a table of OpenCV's; `gray` needs none."""

BETWEEN = 16
"""How finely a colour table is interpolated between its 256 colours."""

_ENCODERS: dict[str, tuple[str, list[int], int]] = {
    "png": (".png", [], 1_000_000),
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90], 65_500),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 90], 16_383),
}
"""Medium -> (suffix, OpenCV's parameters, longest side that the format or its encoder allows); for `png`, see there."""

GAP = 4
"""Pixels between two pictures that stand side by side."""

_PAPER, _INK = (24, 24, 24), (240, 240, 240)
_ELLIPSIS = "…"
_SPELT = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **{"\u201a": "'", "\u2032": "'", "\u201e": '"', "\u2022": "\u00b7", "\u00d7": "x"},
        **{"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"},
        **{"ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i"},
    }
)
"""What stands for dashes, quotes and letters that Unicode does not take apart."""
_NO_CHARACTER = "\U0010ffff"


def colour(values: NDArray[np.floating], colormap: str) -> Picture:
    """The colours `[h, w, 3]` of `values` `[h, w]`; below 0 counts as 0, above 1 as 1.

    Value `k / 255` has OpenCV's colour `k` of that map's 256, values between have colours between; `gray` is the value itself.
    """
    return _looked_up(np.clip(values, 0, 1) * _LAST, colormap)


def overlay(picture: Picture, heatmap: Floats, view: Rect, colormap: str, opacity: float) -> Picture:
    """`picture` with `heatmap` over the part that the model saw, and the rest of it at half brightness.

    The heatmap covers `view` exactly and is upsampled bilinearly with half-pixel centres, its outer cells extended to the
    edges. A pixel is inside the view if its centre is, the left and top edges included. What is computed for a pixel inside:
    interpolate, colour (`colour`, interpolated too), `(1 - opacity) picture + opacity colour`, round. Each result is within
    one grey level of that in exact arithmetic.

    Args:
        picture: `[H, W, 3]`; not changed.
        heatmap: `[h, w]` in [0, 1].
        view: in this picture's pixels; edges may be fractions and lie beyond the picture.
        colormap: one of `config.COLORMAPS`.
        opacity: 0 (the picture alone) to 1 (the colours alone).
    """
    rows, columns = _inside(view.top, view.bottom, picture.shape[0]), _inside(view.left, view.right, picture.shape[1])
    drawn = _shaped(cv2.convertScaleAbs(picture, alpha=0.5), picture.shape)
    if not (rows.size and columns.size):
        return drawn
    cells = _between(heatmap.T * np.float32(_LAST), _places(columns, view.left, view.right, heatmap.shape[1]))
    cells = np.ascontiguousarray(cells.T)
    places = _places(rows, view.top, view.bottom, heatmap.shape[0])
    across = slice(columns[0], columns[-1] + 1)
    step = max(1, _STRIP // columns.size)
    for start in range(0, rows.size, step):
        colours = _looked_up(_between(cells, places[start : start + step]), colormap)
        window = slice(rows[start], rows[start] + len(colours)), across
        seen = picture[window]
        drawn[window] = _shaped(cv2.addWeighted(seen, 1 - opacity, colours, opacity, 0), seen.shape)
    return drawn


def fit(picture: Picture, max_side: int) -> tuple[Picture, float]:
    """The picture, averaged down where its longer side exceeds `max_side`, and by what its longer side was scaled (at most 1)."""
    height, width = picture.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _shaped(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), (size[1], size[0], 3)), scale


def encode(picture: Picture, media: str) -> bytes:
    """The picture as `png`, `jpeg` or `webp` (quality 90 both).

    Raises:
        RequestError: 413 `ResponseTooLarge`, a side is longer than that format allows.
    """
    suffix, parameters, longest = _ENCODERS[media]
    height, width = picture.shape[:2]
    if max(height, width) > longest:
        problem = f"the picture would be {width} x {height} pixels; {media} allows {longest} a side"
        raise RequestError(413, "ResponseTooLarge", f"{problem}: ask for fewer targets, or for another format")
    if media == "png":
        return png.encoded(picture)
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), parameters)[1].tobytes()


def side_by_side(pictures: Sequence[Picture], labels: Sequence[str], targets: Sequence[int] | None = None) -> Picture:
    """Pictures of one size next to each other, `GAP` pixels apart, each with its label on a strip above.

    The strip's height goes by the pictures' height. A label is shortened to its picture's width, left out where not even an
    ellipsis fits, and written with the characters that Pillow's built-in font has: accents are dropped, dashes and the like
    replaced by what is nearest. Where others are missing, or two labels read the same, `class 17: ` stands before it.

    Args:
        targets: the class index of each; None: what can be written of a label stands alone.

    Returns:
        `[H + strip, n W + (n - 1) GAP, 3]`.
    """
    height, width = pictures[0].shape[:2]
    font = _font(min(40, max(12, height // 24)))
    strip = int(font.size * 1.6)
    sheet = Image.new("RGB", ((width + GAP) * len(pictures) - GAP, strip), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = range(0, sheet.width, width + GAP)
    for left, text in zip(lefts, _captions([label[:width] for label in labels], targets, font, width - 2 * GAP), strict=True):
        draw.text((left + GAP, strip / 2), text, fill=_INK, font=font, anchor="lm")
    whole = np.empty((strip + height, sheet.width, 3), np.uint8)
    whole[:strip], whole[strip:] = np.asarray(sheet), _PAPER
    for left, picture in zip(lefts, pictures, strict=True):
        whole[strip:, left : left + width] = picture
    return whole


_LAST = 255 * BETWEEN

_STRIP = 32_768
"""Pixels that are drawn at a time: what is computed on the way stays in the processor's cache."""


@lru_cache(maxsize=8)
def _table(colormap: str) -> NDArray[np.uint32]:
    """The colours of 0, 1 / _LAST, ... 1: red, green, blue and a spare byte in each, so that a pixel is one number to fetch."""
    steps = np.arange(256, dtype=np.uint8)
    if colormap == "gray":
        colours = np.stack([steps] * 3, 1)
    else:
        colours = _shaped(cv2.applyColorMap(steps, SCALES[colormap]), (256, 3))[:, ::-1]
    places = np.arange(_LAST + 1) / BETWEEN
    table = np.zeros((_LAST + 1, 4), np.uint8)
    for channel in range(3):
        table[:, channel] = np.rint(np.interp(places, steps, colours[:, channel]))
    return table.view(np.uint32)[:, 0]


def _looked_up(places: NDArray[np.floating], colormap: str) -> Picture:
    """The colours `[h, w, 3]` of places `[h, w]` in the table."""
    found = np.take(_table(colormap), (places + 0.5).astype(np.intp), mode="clip")
    height, width = found.shape
    return _shaped(cv2.cvtColor(found.view(np.uint8).reshape(height, width, 4), cv2.COLOR_RGBA2RGB), (height, width, 3))


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> Picture:
    """What OpenCV returns, in the shape that it was given."""
    return np.asarray(array, np.uint8).reshape(shape)


def _inside(low: float, high: float, count: int) -> NDArray[np.intp]:
    """Those of `count` pixels whose centres lie in [low, high)."""
    return np.arange(max(0, math.ceil(low - 0.5)), min(count, math.ceil(high - 0.5)))


def _places(pixels: NDArray[np.intp], low: float, high: float, count: int) -> NDArray[np.float64]:
    """Where the pixels' centres lie among `count` equal cells between two edges, in cells: 0 is the first cell's centre."""
    places: NDArray[np.float64] = ((pixels + 0.5 - low) * (count / (high - low)) - 0.5).clip(0, count - 1)
    return places


def _between(values: Floats, places: NDArray[np.float64]) -> Floats:
    """Rows of `values` `[n, m]` at fractional places (0 to n - 1), interpolated linearly: `[places, m]`."""
    below = places.astype(np.intp)
    found = values[np.minimum(below + 1, len(values) - 1)]
    found -= values[below]
    found *= (places - below).astype(np.float32)[:, None]
    found += values[below]
    return found


@lru_cache(maxsize=40)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # with a size it is never the bitmap font


def _captions(labels: Sequence[str], targets: Sequence[int] | None, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """What stands above each picture, `width` pixels wide at most."""
    drawn = [_drawable(label) for label in labels]
    texts = [_shortened(text, font, width) for text, _ in drawn]
    if targets is None:
        return texts
    return [
        short
        if text and whole and texts.count(short) == 1
        else _shortened(f"class {target}: {text}".removesuffix(": "), font, width)
        for (text, whole), short, target in zip(drawn, texts, targets, strict=True)
    ]


def _drawable(text: str) -> tuple[str, bool]:
    """What can be drawn of `text`, on one line, without accents and invisible characters; whether the font lacks nothing."""
    written = "".join(character if _has_glyph(character) else _replaced(character) for character in " ".join(text.split()))
    if _NO_CHARACTER not in written:
        return written, True
    left = " ".join(written.replace(_NO_CHARACTER, "").split()).strip(" ,;:/-")
    return left if any(character.isalnum() for character in left) else "", False


def _replaced(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character).translate(_SPELT)
    kept = [part for part in parts if unicodedata.category(part) not in ("Mn", "Me", "Cf")]
    return "".join(part if _has_glyph(part) else _NO_CHARACTER for part in kept)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    return _glyph(character) != _glyph(_NO_CHARACTER)


def _glyph(character: str) -> bytes:
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((4, 4), character, fill=255, font=_font(16))
    return image.tobytes()


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, or as much of its beginning as fits into `width` pixels with an ellipsis; empty where nothing does."""
    if font.getlength(text) <= width:
        return text
    fits, fails = -1, len(text)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if font.getlength(text[:middle].rstrip() + _ELLIPSIS) <= width:
            fits = middle
        else:
            fails = middle
    return "" if fits < 0 else text[:fits].rstrip() + _ELLIPSIS
