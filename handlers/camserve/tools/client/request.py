"""A picture and its options become a request's body and headers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.protocol.options import HEADER_PREFIX, OPTIONS

Picture = str | Path | bytes | bytearray | Image.Image | NDArray[Any]
"""A file's path, an encoded picture, a Pillow image, or an array: see `encode`."""


def write_request(image: Picture, options: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Composes body and headers: a picture goes as it is, with its options in headers; a tensor, or beside a mask, as JSON."""
    tensor = is_tensor(image)
    if tensor or isinstance(options.get("inside"), str):  # servers take headers of a few kB
        data = np.asarray(image).tolist() if tensor else base64.b64encode(encode(image)).decode()
        body = {"data": data, **options}
        return json.dumps(body, default=int).encode(), {"content-type": "application/json", "accept": "application/json"}
    headers = {**write_headers(options), "content-type": "application/octet-stream", "accept": "application/json"}
    return encode(image), headers


def write_headers(options: Mapping[str, object]) -> dict[str, str]:
    """Writes options as `x-explain-*` headers, in ASCII.

    A lone label becomes a list, so that neither digits nor brackets in it are taken for anything else. NumPy's whole numbers
    are written too.
    """
    lists = {option.name for option in OPTIONS if option.labels}
    headers: dict[str, str] = {}
    for name, value in options.items():
        spelt = [value] if name in lists and isinstance(value, str) else value
        headers[HEADER_PREFIX + name.replace("_", "-")] = spelt if isinstance(spelt, str) else json.dumps(spelt, default=int)
    return headers


def is_tensor(image: Picture) -> bool:
    """A normalised tensor `[channels, H, W]`, not pixels `[H, W, 3]` of floats, which nobody takes."""
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype.kind == "f"):
        return False
    return image.shape[2] not in (1, 3, 4) or image.shape[0] in (1, 3, 4)


def encode(image: Picture) -> bytes:
    """Encodes a picture as the server opens it: images and arrays as PNG; a file or bytes stay as they are.

    Args:
        image: an array is uint8, `[H, W]`, `[H, W, 3]` or `[H, W, 4]`, its values 0 to 255; or uint16 `[H, W]`, 0 to 65535.

    Raises:
        ValueError: an array of another type or shape.
        OSError: the file cannot be read.
    """
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        colours = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4)
        grey = array.dtype in (np.uint8, np.uint16) and array.ndim == 2
        if not (colours or grey):
            raise ValueError(
                "image: expected an array [H, W], [H, W, 3] or [H, W, 4] of uint8, [H, W] of uint16, or a normalised tensor "
                "[channels, H, W] of floats, "
                f"got {list(array.shape)} of {array.dtype}"
            )
        image = Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
