"""What is kept of a picture: a thumbnail to be shown, and perhaps the file as it came."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.messages import Encoded
from camserve.core.messages import Image as Given
from camserve.monitoring.evidence.records import Picture
from camserve.pictures.decode import open_picture
from camserve.pictures.files.formats import sniff

SIDE = 512
"""Pixels of a thumbnail's longer side, at most."""
QUALITY = 85


def keep_picture(image: Given, size: tuple[int, int] | None, config: Config, kind: str) -> tuple[Picture, tuple[int, int] | None]:
    """Make what is kept of a picture, and tell the original's (width, height); None: a tensor, or not known.

    The thumbnail is turned as the model saw the picture, and holds nothing else: no EXIF, no place, no name of a camera.

    Args:
        size: the original's, where it is known.
        config: how the archive opens pictures.
        kind: `none`, `thumbnail` or `whole`.
    """
    if not isinstance(image, Encoded):
        return Picture("none", "tensor"), None
    if kind == "none":
        return Picture("none", "setting"), size
    try:
        picture = open_picture(image.data, config, least=0 if size is None else SIDE)
    except RequestError:  # a handler's own step may read what ours does not
        return Picture("none", "unreadable"), size
    size = size or picture.size
    shown = Picture("thumbnail", "", *_shrink(picture))
    if kind != "whole":
        return shown, size
    return replace(shown, kind="whole", file=bytes(image.data), media_type=_name_type(image.data)), size


def _shrink(picture: Image.Image) -> tuple[bytes, tuple[int, int]]:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), picture.size


def _name_type(data: bytes | bytearray) -> str:
    name = (sniff(data) or "").lower()
    return "application/dicom" if name == "dicom" else f"image/{name}"
