"""A picture that comes as numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.protocol.tensors import read_tensor

CONFIG = Config()


def nested(channels: int = 3, height: int = 2, width: int = 4, value: Any = 0.5) -> list[Any]:
    """A list [channels][height][width]."""
    return [[[value] * width for _ in range(height)] for _ in range(channels)]


def refusal(value: object, config: Config = CONFIG) -> str:
    """The message of a tensor that is not taken."""
    with pytest.raises(RequestError) as caught:
        read_tensor(value, config)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidTensor")
    start = "data: expected a tensor [3][H][W] of finite numbers, H and W from 1 to 4096, got "
    assert caught.value.message.startswith(start)
    assert len(caught.value.message) < 200
    return caught.value.message.removeprefix(start)


def test_a_list_becomes_float32() -> None:
    """Integers and floats, in the order channel, row, column."""
    value = [[[1, 2.5], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, -1e-3]]]
    tensor = read_tensor(value, CONFIG)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 2, 2)
    assert np.array_equal(tensor, np.array(value, dtype=np.float32))
    assert tensor.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4", "int32", "uint8"])
def test_an_array_becomes_float32_of_its_own(dtype: str) -> None:
    """Any number type and byte order, also read-only or strided; the result is contiguous and shares no memory."""
    value = np.arange(96).reshape(4, 8, 3).astype(dtype).transpose(2, 0, 1)[:, :, ::2]
    value.flags.writeable = False
    tensor = read_tensor(value, CONFIG)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor.flags.writeable
    assert not np.shares_memory(tensor, value)
    assert np.array_equal(tensor, value.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "came"),
    [
        ([], "shape [0]"),
        ([[]] * 3, "shape [3, 0]"),
        ([[[]]] * 3, "shape [3, 1, 0]"),
        ([1, 2, 3], "shape [3]"),
        (nested(1), "shape [1, 2, 4]"),
        (nested(4), "shape [4, 2, 4]"),
        ([nested()], "shape [1, 3, 2, 4]"),
        ([[[[1]]]] * 3, "shape [3, 1, 1, 1]"),
        (nested(3, 4097, 1), "shape [3, 4097, 1]"),
        (nested(3, 1, 4097), "shape [3, 1, 4097]"),
        ("hello", '"hello"'),
        (None, "null"),
        (1.5, "1.5"),
        ({"a": 1}, "an object of 1"),
        ([nested(1)[0], nested(1, 3)[0], nested(1)[0]], "channels of different heights"),
        ([nested(1)[0], 7, nested(1)[0]], "channels of different heights"),
        ([nested(1)[0], "ab", nested(1)[0]], "channels of different heights"),
        ([[[1, 2]], [[1, 2, 3]], [[1, 2]]], "rows of different widths"),
        ([[[1, 2]], ["ab"], [[1, 2]]], "rows of different widths"),
        (nested(value=True), "an element that is a bool"),
        (nested(value="1"), "an element that is a str"),
        (nested(value=None), "an element that is a NoneType"),
        ([[[1]], [[2]], [[[3]]]], "an element that is a list"),
        ([[[1]], [[2]], [[{}]]], "an element that is a dict"),
        (nested(value=float("nan")), "a number that is not finite in float32"),
        (nested(value=float("-inf")), "a number that is not finite in float32"),
        (nested(value=1e39), "a number that is not finite in float32"),
        (nested(value=10**39), "a number that is not finite in float32"),
        (nested(value=10**400), "a number that is not finite in float32"),
        (np.zeros((3, 2)), "shape [3, 2]"),
        (np.float32(3), "float32"),
        (np.zeros(()), "ndarray"),
        (np.zeros((3, 0, 2)), "shape [3, 0, 2]"),
        (np.zeros((3, 2, 2), dtype=bool), "an array of bool"),
        (np.zeros((3, 2, 2), dtype=object), "an array of object"),
        (np.zeros((3, 2, 2), dtype=complex), "an array of complex128"),
        (np.full((3, 2, 2), np.nan), "a number that is not finite in float32"),
        (np.full((3, 2, 2), 1e300), "a number that is not finite in float32"),
    ],
)
def test_anything_else_is_refused_with_what_came(value: object, came: str) -> None:
    """Ragged, deep, empty, of other types, not finite, too large for float32: a 400 that says so."""
    assert refusal(value) == came


def test_more_pixels_than_allowed_are_refused() -> None:
    """The limit on pictures holds for tensors; exactly as many pass."""
    assert read_tensor(nested(3, 4, 5), Config(max_pixels=20)).shape == (3, 4, 5)
    with pytest.raises(RequestError) as caught:
        read_tensor(nested(3, 3, 7), Config(max_pixels=20))
    assert (caught.value.status, caught.value.kind) == (413, "ImageTooLarge")
    assert caught.value.message == "data: expected at most 20 pixels, got a tensor of shape [3, 3, 7]"


def test_a_list_as_deep_as_json_goes_is_refused() -> None:
    """No recursion: the depth of what came does not matter."""
    deep = json.loads("[" * 900 + "]" * 900)
    for _ in range(100_000):
        deep = [deep]
    assert refusal(deep) == "shape [1, 1, 1, 1]"
    while deep:  # taken apart by hand, for freeing it at once would recurse as well
        deep = deep.pop()


def test_reading_pictures_and_tensors_needs_no_torch() -> None:
    """Requests are parsed without it."""
    code = "import sys, camserve.protocol.tensors, camserve.pictures.decode, camserve.core.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "handlers"}, check=False).returncode == 0
