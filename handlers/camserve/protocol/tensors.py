"""Pictures that come as numbers: JSON lists and arrays become the model's input. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.text import show

_MAX_SIDE = 4096
_NOT_FINITE = "a number that is not finite in float32"
_UNEVEN = ("another number of channels", "channels of different heights", "rows of different widths")


def read_tensor(value: object, config: Config) -> NDArray[np.float32]:
    """Reads a normalised picture from a JSON list or an array, as a new float32 array `[3, H, W]`.

    Raises:
        RequestError: 400 `InvalidTensor` unless `value` has 3 channels of 1 to 4096 rows of equally many (1 to 4096)
            finite numbers (booleans are none); 413 `ImageTooLarge` for more than `config.max_pixels` in a channel.
    """
    shape = list(value.shape) if isinstance(value, np.ndarray) else shape_of_lists(value)
    if len(shape) != 3 or shape[0] != 3 or not all(1 <= side <= _MAX_SIDE for side in shape[1:]):
        raise _bad_tensor(f"shape {shape}" if shape else show(value))
    if shape[1] * shape[2] > config.max_pixels:
        message = f"data: expected at most {config.max_pixels} pixels, got a tensor of shape {shape}"
        raise RequestError(413, "ImageTooLarge", message)
    try:
        array = _array(value) if isinstance(value, np.ndarray) else read_numbers(value, shape, _UNEVEN)
    except ValueError as error:
        raise _bad_tensor(str(error)) from None
    if not np.isfinite(array).all():
        raise _bad_tensor(_NOT_FINITE)
    return array


def shape_of_lists(value: object) -> list[int]:
    """Measures nested lists by their first elements, down to four levels."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) < 4:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def read_numbers(value: object, shape: Sequence[int], uneven: Sequence[str]) -> NDArray[np.float32]:
    """Reads nested lists of numbers as a float32 array of this shape; floats beyond float32's range become infinite.

    All types are checked before NumPy sees the lists: it would turn strings into an array in which each takes as much memory
    as the longest. Booleans are no numbers.

    Args:
        value: lists as deep as `shape` is long.
        shape: what each level's lists must hold.
        uneven: for each level, the message where a list has another length.

    Raises:
        ValueError: says what came.
    """
    lists: list[Any] = [value]
    for level, size in enumerate(shape):
        if level:
            lists = list(chain.from_iterable(lists))
        if not all(isinstance(each, list) and len(each) == size for each in lists):
            raise ValueError(uneven[level])
    strange = set(map(type, chain.from_iterable(lists))) - {int, float}
    if strange:
        raise ValueError(f"an element that is a {min(kind.__name__ for kind in strange)}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.fromiter(chain.from_iterable(lists), dtype=np.float32, count=math.prod(shape)).reshape(shape)
    except OverflowError:
        raise ValueError(_NOT_FINITE) from None


def _array(value: NDArray[np.generic]) -> NDArray[np.float32]:
    if value.dtype.kind not in "fiu":
        raise ValueError(f"an array of {value.dtype.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(value, dtype=np.float32, order="C")


def _bad_tensor(came: str) -> RequestError:
    expected = f"[3][H][W] of finite numbers, H and W from 1 to {_MAX_SIDE}"
    return RequestError(400, "InvalidTensor", f"data: expected a tensor {expected}, got {came}")
