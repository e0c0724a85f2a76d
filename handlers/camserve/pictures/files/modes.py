"""Brings a picture that is open to the mode that a model gets, and upright."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.pictures.bounds.ifd import check_exif

FAULTS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(EOFError, RuntimeError, BufferError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise on damaged files. MemoryError is not the file's fault, and passes."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom), in pixels."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_ORIENTATION = 0x0112
_LONGEST_PROFILE = 150_000
"""Characters of EXIF as text in a PNG: 64 kB in hexadecimal, with line ends."""

QUARTER_TURNS = (
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
)
"""Those that exchange width and height."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Those that undo each EXIF orientation; 1 needs none."""


def convert_picture(picture: Image.Image, config: Config) -> Image.Image:
    """Convert a picture that is open to the mode that `open_picture` gives, turned by its EXIF orientation if `config.exif`.

    Raises:
        RequestError: 400 `InvalidImage`, it is of 32-bit integers or floats.
    """
    transposition = _read_transposition(picture) if config.exif else None
    picture = keep_grey(picture) if config.channels == 1 else convert_to_rgb(picture)
    return picture if transposition is None else picture.transpose(transposition)


def find_turn(picture: Image.Image) -> Image.Transpose | None:
    """Say how a picture that was opened without `config.exif` would have to be turned, as its file says; None: it is upright."""
    return _read_transposition(picture)


def turn_box(box: Box, size: tuple[int, int], turn: Image.Transpose | None) -> Box:
    """Return where a box of a picture of `size` = (width, height) lies once the picture is turned."""
    left, top, right, bottom = box
    turns = Image.Transpose
    if turn in (turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.ROTATE_90, turns.TRANSVERSE):
        left, right = size[0] - right, size[0] - left
    if turn in (turns.FLIP_TOP_BOTTOM, turns.ROTATE_180, turns.ROTATE_270, turns.TRANSVERSE):
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if turn in QUARTER_TURNS else (left, top, right, bottom)


def _read_transposition(picture: Image.Image) -> Image.Transpose | None:
    """Return what EXIF orientation asks for. No other tag is read: damage to the others must not matter."""
    try:
        block = picture.info.get("exif")
        if isinstance(block, bytes):
            check_exif(block.removeprefix(b"Exif\0\0"))
        if len(picture.info.get("Raw profile type exif", "")) > _LONGEST_PROFILE:
            return None
        return _TRANSPOSITIONS.get(picture.getexif().get(_ORIENTATION, 1))
    except FAULTS:
        return None


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, 8 bits a channel.

    Raises:
        RequestError: 400 `InvalidImage`, it is of 32-bit integers or floats.
    """
    if picture.mode == "RGB":
        return picture
    if _is_grey16(picture):
        return _scale_grey16(picture, 255).convert("RGB")
    _check_white(picture)
    return picture.convert("RGB")


def keep_grey(picture: Image.Image) -> Image.Image:
    """Convert a grey picture to mode L, or I;16 (white is 65535) where it has more than 8 bits; any other one to RGB."""
    if _is_grey16(picture):
        return _scale_grey16(picture, 65535)
    _check_white(picture)
    return picture.convert("L" if picture.mode in {"1", "L", "LA", "La"} else "RGB")


def _is_grey16(picture: Image.Image) -> bool:
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")


def _check_white(picture: Image.Image) -> None:
    if picture.mode in {"I", "F"}:
        message = "data: expected 8 or 16 bits a channel, got a picture of 32-bit numbers, whose white is not defined"
        raise RequestError(400, "InvalidImage", message)


def _scale_grey16(picture: Image.Image, high: int) -> Image.Image:
    """Return grey of up to 16 bits as grey from 0 to `high` (255: mode L, 65535: I;16), rounded, so that white stays white.

    Pillow inverts TIFFs whose 0 is white only up to 8 bits.
    """
    tags = getattr(picture, "tag_v2", {})
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    table = (np.arange(65536).clip(max=white) * high + white // 2) // white
    if tags.get(_PHOTOMETRIC) == 0:
        table = high - table
    scaled = Image.fromarray(table.astype(np.uint8 if high == 255 else np.uint16)[np.asarray(picture)])
    scaled.info = picture.info  # EXIF, as Pillow's own conversions keep it
    return scaled
