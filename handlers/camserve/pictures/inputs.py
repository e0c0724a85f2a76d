"""Pictures as a Python program has them: paths, bytes, PIL images, arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camserve.core.config import Config
from camserve.core.messages import Encoded
from camserve.pictures.decode import Enough, Opened, open_enough
from camserve.pictures.files.modes import convert_picture

Picture = Path | str | bytes | Image.Image | NDArray[Any] | Tensor
"""A file's path, an encoded picture, pixels `[H, W, 3]` or `[H, W]` (uint8; grey may be uint16), or a normalised input
`[channels, H, W]` (floats)."""


def read_pictures(pictures: Picture | Iterable[Picture], channels: int = 3) -> list[Any]:
    """Read what the pipeline takes: encoded bytes, an open picture, or a normalised input `[channels, H, W]`, float32.

    Raises:
        TypeError: it is nothing that a picture can be given as.
        OSError: a file cannot be read.
    """
    single = isinstance(pictures, (str, Path, bytes, Image.Image))
    array = isinstance(pictures, (np.ndarray, Tensor)) and pictures.ndim < 4
    return [_read_picture(each, channels) for each in ([pictures] if single or array else pictures)]  # type: ignore[union-attr]


def _read_picture(picture: Any, channels: int) -> Any:
    if isinstance(picture, (str, Path)):
        return Encoded(Path(picture).read_bytes())
    if isinstance(picture, bytes):
        return Encoded(picture)
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] in (3, 4):
            return Image.fromarray(picture)
        if picture.dtype in (np.uint8, np.uint16) and picture.ndim == 2:
            return Image.fromarray(picture)
        if picture.dtype.kind == "f" and picture.ndim == 3 and picture.shape[0] == channels:
            return np.ascontiguousarray(picture, dtype=np.float32)
        came = f"{picture.dtype} {list(picture.shape)}"
        accepted = f"uint8 [H, W, 3] or [H, W], uint16 [H, W], or a normalised input [{channels}, H, W]"
        raise TypeError(f"a picture as an array: expected {accepted} of floats, got {came}")
    raise TypeError(f"a picture: expected a path, bytes, a PIL image, an array or a tensor, got {type(picture).__name__}")


def open_again(image: Any, config: Config) -> Image.Image:
    """Open a picture that `read_pictures` has read, in the mode that `decode.open_picture` gives.

    Raises:
        RequestError: as `decode.open_picture`; 400 `InvalidImage` for a PIL image of 32-bit integers or floats.
    """
    return open_sized(image, config).picture


def open_sized(image: Any, config: Config, enough: Enough | None = None) -> Opened:
    """Open a picture as `open_again`, perhaps smaller as `decode.open_enough`, and say how large the whole is.

    One that is open already is taken whole.
    """
    if isinstance(image, Image.Image):
        opened = convert_picture(image, config)
        return Opened(opened, opened.size)
    return open_enough(image.data, config, image.origin, enough)
