"""Pictures that come as numbers: JSON lists and arrays become the model's input. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.core.text import join_names, show

_MAX_SIDE = 4096
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1024
"""Bytes; that of an array of numbers takes 118 in NumPy's own files."""

_FLOATS = ("<f4", ">f4", "<f8", ">f8", "<f2", ">f2")
_NPY_HEADER = re.compile(
    rb"\{ *'descr': *'(?P<descr>[^'\\]{1,16})', *'fortran_order': *(?P<fortran>True|False),"
    rb" *'shape': *\((?P<shape>(?: *\d{1,9} *,?){0,8})\) *,? *\} *\n?"
)
"""As NumPy writes it: a dictionary literal of these keys, in this order."""

_NOT_FINITE = "a number that is not finite in float32"
_UNEVEN = ("another number of channels", "channels of different heights", "rows of different widths")


def read_tensor(value: object, config: Config) -> NDArray[np.float32]:
    """Reads a normalised picture from a JSON list or an array, as a new float32 array `[channels, H, W]`.

    Raises:
        RequestError: 400 `InvalidTensor` unless `value` has the model's channels of 1 to 4096 rows of equally many (1 to 4096)
            finite numbers (booleans are none); 413 `ImageTooLarge` for more than `config.max_pixels` in a channel.
    """
    shape = list(value.shape) if isinstance(value, np.ndarray) else shape_of_lists(value)
    check_shape(shape, config, "" if shape else show(value))
    try:
        array = _array(value) if isinstance(value, np.ndarray) else read_numbers(value, shape, _UNEVEN)
    except ValueError as error:
        raise bad_tensor(str(error), config) from None
    return check_finite(array, config)


def check_shape(shape: Sequence[int], config: Config, came: str = "") -> None:
    """Refuse a tensor's shape, by itself: nothing is read yet.

    Args:
        came: what came where it has no shape.

    Raises:
        RequestError: as `read_tensor`.
    """
    if len(shape) != 3 or shape[0] != config.channels or not all(1 <= side <= _MAX_SIDE for side in shape[1:]):
        raise bad_tensor(came or f"shape {list(shape)}", config)
    if shape[1] * shape[2] > config.max_pixels:
        message = f"data: expected at most {config.max_pixels} pixels, got a tensor of shape {list(shape)}"
        raise RequestError(413, "ImageTooLarge", message)


def check_finite(array: NDArray[np.float32], config: Config) -> NDArray[np.float32]:
    """Return the array; raises 400 `InvalidTensor` if a number in it is not finite."""
    if not np.isfinite(array).all():
        raise bad_tensor(_NOT_FINITE, config)
    return array


def is_npy(data: bytes | bytearray) -> bool:
    """Return True if bytes start as an `.npy` file."""
    return data[: len(_MAGIC)] == _MAGIC


def read_npy(data: bytes | bytearray, config: Config) -> NDArray[np.float32]:
    """Read a normalised picture from an `.npy` file (NumPy Enhancement Proposal 1), as a new float32 array `[channels, H, W]`.

    The header is parsed here, and no more of it is accepted than this takes; nothing is unpickled. Integers are refused: they
    would be pixels, not a normalised input.

    Raises:
        RequestError: as `read_tensor`; 400 `InvalidTensor` too for a damaged file, or one of anything but floats.
    """
    try:
        dtype, fortran, shape, start = _read_npy_header(bytes(data[: _LONGEST_HEADER + 12]))
    except ValueError as error:
        raise bad_tensor(str(error), config) from None
    check_shape(shape, config)
    size = math.prod(shape) * dtype.itemsize
    if len(data) - start != size:
        raise bad_tensor(f"an .npy file of shape {list(shape)} with {len(data) - start} bytes of numbers, not {size}", config)
    with np.errstate(over="ignore", invalid="ignore"):
        given = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
        array = given.astype(np.float32, order="C")
    return check_finite(array, config)


def _read_npy_header(start: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Read an `.npy` file's header: type, order and shape of the array, and where its numbers begin.

    Raises:
        ValueError: says what came.
    """
    version, field = start[6:8], 2 if start[6:8] == b"\1\0" else 4
    begin = 8 + field
    length = int.from_bytes(start[8:begin], "little")
    if version not in (b"\1\0", b"\2\0", b"\3\0") or not 0 < length <= _LONGEST_HEADER or len(start) < begin + length:
        raise ValueError("an .npy file with a damaged header")
    match = _NPY_HEADER.fullmatch(start[begin : begin + length])
    if match is None:
        raise ValueError("an .npy file of something else than one array of numbers")
    kind, shape = match["descr"].decode(), tuple(int(side) for side in match["shape"].replace(b",", b" ").split())
    if kind not in _FLOATS:
        pixels = ": a tensor is normalised already, pixels go as a picture" if kind[1:2] in {"i", "u", "b"} else ""
        raise ValueError(f"an .npy file of {show(kind)}, not of floats ({join_names(_FLOATS)}){pixels}")
    return np.dtype(kind), match["fortran"] == b"True", shape, begin + length


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


def bad_tensor(came: str, config: Config) -> RequestError:
    """Make the error that says what a tensor is, and what came."""
    expected = f"[{config.channels}][H][W] of finite numbers, H and W from 1 to {_MAX_SIDE}"
    return RequestError(400, "InvalidTensor", f"data: expected a tensor {expected}, got {came}")
