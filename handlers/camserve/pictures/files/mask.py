"""An area that a client names in its picture, a box or a mask, which is checked before it is believed."""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Encoded
from camserve.pictures.bounds.work import Measure, price_pixels
from camserve.pictures.decode import open_picture, weigh
from camserve.pictures.files.modes import find_turn

_HEADER = struct.Struct(">8s4x4sIIBB")
"""Of a PNG: its mark, its first chunk's name, width, height, bits, and kind of colour."""

_ALPHA = 4
"""A bit of the kind of colour."""

_SIDEWAYS = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
_ADVICE = "send a PNG of the picture's size, black outside and of one other colour inside, without transparency"

_STRIP = 256
"""Rows that are looked at at a time."""

OVER = 1.0
"""Pixels by which a box may leave the picture: tools round, and count the last pixel in or out."""


Area = Sequence[float] | Path | str | bytes | Image.Image | NDArray[Any]
"""A box `[left, top, right, bottom]` in pixels; or a mask: a PNG's path or its bytes, a PIL image, or an array `[H, W]`, 0 or
False outside."""


def spell_area(area: Area) -> list[float] | str:
    """Spell an area as JSON has it: a box as a list, a mask as a PNG in base64.

    Raises:
        OSError: a file cannot be read.
    """
    if isinstance(area, (str, Path)):
        area = Path(area).read_bytes()
    if isinstance(area, np.ndarray) and area.ndim == 2:
        area = Image.fromarray(np.where(area != 0, np.uint8(255), np.uint8(0)))
    if isinstance(area, Image.Image):
        file = io.BytesIO()
        area.save(file, "PNG")
        area = file.getvalue()
    if isinstance(area, bytes):
        return base64.b64encode(area).decode()
    return [float(edge) for edge in area]


def measure_mask(mask: Encoded, config: Config) -> Measure:
    """Measure a mask's file by its header, as `decode.measure` does a picture's; a damaged one has no size."""
    try:
        weight = weigh(mask.data, _settings(config))
    except RequestError as error:
        return Measure(fault=_about_mask(error))
    size = _read_size(mask.data)
    pixels = math.prod(size)
    if weight is None or pixels > config.max_pixels:
        return Measure(work=0.0 if weight is None else weight.header)
    return Measure(size, pixels, weight.header + price_pixels(weight.name, weight.effort, pixels, 0))


def check_area(area: Rect | Encoded, picture: Image.Image, size: tuple[int, int], config: Config) -> None:
    """Refuse an area that does not fit its picture, or that may be read in two ways; of a mask, by its header alone.

    Args:
        picture: as it was opened, perhaps smaller.
        size: (width, height) of the whole picture, as in the answer's `image`.
        config: `exif`.

    Raises:
        RequestError: 400 `InvalidOption`.
    """
    if isinstance(area, Encoded):
        _check_mask(area.data, size)
    else:
        _check_box(area, size)
    turn = None if config.exif else find_turn(picture)
    settled = isinstance(area, Encoded) and turn in _SIDEWAYS and size[0] != size[1]
    if turn is not None and not settled:
        message = (
            "the picture's file says that it is stored turned (EXIF orientation), and this archive takes pictures as they are "
            "stored, so an area may be of either; send the picture upright, without that tag, or package with exif: true"
        )
        raise _refuse(message)


def read_mask(mask: Encoded, config: Config) -> NDArray[np.bool_]:
    """Decode a mask that `check_area` let pass: True `[height, width]` where it is not black.

    Raises:
        RequestError: 400 `InvalidOption`, it is damaged, black all over, or has more than two colours: which of them lie inside
            is not said; 413 `ImageTooLarge`.
    """
    try:
        colours = np.asarray(open_picture(mask.data, _settings(config)))
    except RequestError as error:
        raise _about_mask(error) from None
    inside = np.zeros(colours.shape[:2], bool)
    first: NDArray[np.uint8] | None = None
    for top in range(0, len(colours), _STRIP):
        strip = colours[top : top + _STRIP]
        inside[top : top + _STRIP] = lit = strip.any(2)
        found = strip[lit]
        first = found[0] if first is None and len(found) else first
        if (found != first).any():
            raise _refuse(f"the mask has more than two colours, and which of them lie inside is not said; {_ADVICE}")
    if first is None:
        raise _refuse(f"the mask is black all over; {_ADVICE}")
    return inside


def _check_box(box: Rect, size: tuple[int, int]) -> None:
    width, height = size
    came = f"got {[box.left, box.top, box.right, box.bottom]}"
    if max(-box.left, -box.top, box.right - width, box.bottom - height) > OVER:
        raise _refuse(
            f"expected a box within the picture's {width} x {height} pixels, {came}: is it of the picture at another size?"
        )
    if box.right <= 1 < width and box.bottom <= 1 < height:
        advice = "where these are shares of its sides, multiply them by its width and height"
        raise _refuse(f"expected a box in pixels, {came}, which is within the first of {width} x {height}; {advice}")


def _check_mask(data: bytes, size: tuple[int, int]) -> None:
    came = _read_size(data)
    if came != size:
        raise _refuse(f"expected a mask of the picture's {size[0]} x {size[1]} pixels, got {came[0]} x {came[1]}")
    head = data[: data.find(b"IDAT")]
    if _HEADER.unpack_from(data)[5] & _ALPHA or b"tRNS" in head:
        raise _refuse(f"the mask is partly transparent, and what that means is not said; {_ADVICE}")
    if b"eXIf" in head:
        raise _refuse(f"the mask has an EXIF block, which may turn it; {_ADVICE}")


def _read_size(data: bytes) -> tuple[int, int]:
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[1] != b"IHDR":
        return 0, 0
    _, _, width, height, _, _ = _HEADER.unpack_from(data)
    return width, height


def _refuse(message: str) -> RequestError:
    return RequestError(400, "InvalidOption", f"inside: {message}")


def _about_mask(error: RequestError) -> RequestError:
    """Say of an error about a picture that it is about the mask."""
    kind = "InvalidOption" if error.status == 400 else error.kind
    return RequestError(error.status, kind, error.message.replace("data:", "inside:", 1))


def _settings(config: Config) -> Config:
    return replace(config, formats=("png",), channels=3, exif=False)
