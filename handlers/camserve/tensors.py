"""A picture that comes as numbers: a JSON list, or an array, to the model's input. No torch."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from camserve.config import Config
from camserve.errors import RequestError, shown

_MAX_SIDE = 4096


def tensor_input(value: object, config: Config) -> NDArray[np.float32]:
    """An already normalised picture, as a JSON list or an array, as float32 [3, H, W] of its own.

    Raises:
        RequestError: 400 `InvalidTensor` unless `value` has 3 channels of 1 to 4096 rows of equally many (1 to 4096)
            finite numbers (booleans are none), with at most `config.max_pixels` in a channel.
    """
    shape = list(value.shape) if isinstance(value, np.ndarray) else _list_shape(value)
    if len(shape) != 3 or shape[0] != 3 or not all(1 <= side <= _MAX_SIDE for side in shape[1:]):
        raise _bad_tensor(f"shape {shape}" if shape else shown(value))
    if shape[1] * shape[2] > config.max_pixels:
        raise _bad_tensor(f"shape {shape}, more than {config.max_pixels} pixels")
    with np.errstate(over="ignore", invalid="ignore"):
        array = _array(value) if isinstance(value, np.ndarray) else _array_of_lists(value, shape)
    if not np.isfinite(array).all():
        raise _bad_tensor("a number that is not finite in float32")
    return array


def _bad_tensor(came: str) -> RequestError:
    expected = f"[3][H][W] of finite numbers, H and W from 1 to {_MAX_SIDE}"
    return RequestError(400, "InvalidTensor", f"data: expected a tensor {expected}, got {came}")


def _list_shape(value: object) -> list[int]:
    """The shape as the first elements have it, down to four levels."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) < 4:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _array(value: NDArray[np.generic]) -> NDArray[np.float32]:
    if value.dtype.kind not in "fiu":
        raise _bad_tensor(f"an array of {value.dtype.name}")
    return np.array(value, dtype=np.float32, order="C")


def _array_of_lists(value: object, shape: list[int]) -> NDArray[np.float32]:
    channels: list[list[list[float]]] = value  # type: ignore[assignment] # checked here
    if not all(isinstance(channel, list) and len(channel) == shape[1] for channel in channels):
        raise _bad_tensor("channels of different heights")
    rows = list(chain.from_iterable(channels))
    if not all(isinstance(row, list) and len(row) == shape[2] for row in rows):
        raise _bad_tensor("rows of different widths")
    strange = set(map(type, chain.from_iterable(rows))) - {int, float}
    if strange:
        raise _bad_tensor(f"an element that is a {min(kind.__name__ for kind in strange)}")
    try:
        return np.fromiter(chain.from_iterable(rows), dtype=np.float32, count=math.prod(shape)).reshape(shape)
    except OverflowError:
        raise _bad_tensor("a number that is not finite in float32") from None
