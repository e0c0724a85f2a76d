"""A picture that comes as numbers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.protocol.tensors import read_npy, read_tensor

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


# ------------------------------------------------------------------ .npy files

FIVE = Config(channels=5)


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    """A file as NumPy writes it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version=version)
    return file.getvalue()


VALUES = np.random.default_rng(0).normal(size=(5, 4, 3))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_of_floats_are_read(kind: str, order: Any, version: tuple[int, int]) -> None:
    """Of either byte order, either order of axes and each version, as NumPy itself reads them."""
    array = np.asarray(VALUES.astype(kind), order=order)
    found = read_npy(npy(array, version), FIVE)
    assert found.dtype == np.float32
    assert (found.flags.c_contiguous, found.flags.writeable) == (True, True)
    assert np.array_equal(found, np.load(io.BytesIO(npy(array, version))).astype(np.float32))


class Evil:
    """Unpickling it would end the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def altered(old: bytes, new: bytes) -> bytes:
    """A good file whose header says something else, at the same length."""
    assert len(old) == len(new)
    return npy(VALUES.astype("<f4")).replace(old, new)


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (npy(np.array([Evil()], dtype=object)), "of something else|not of floats"),
        (npy(VALUES.astype(np.uint8)), "not of floats .*pixels go as a picture"),
        (npy(VALUES > 0), "not of floats"),
        (npy(VALUES.astype(np.complex64)), "not of floats"),
        (npy(np.zeros(2, [("a", "<f4"), ("b", "<f4")])), "of something else"),
        (npy(VALUES[None]), r"got shape \[1, 5, 4, 3\]"),
        (npy(VALUES[:4]), r"got shape \[4, 4, 3\]"),
        (npy(VALUES[:, :0]), r"got shape \[5, 0, 3\]"),
        (npy(np.float32(3)), r"got shape \[\]"),
        (npy(VALUES * np.nan), "not finite"),
        (npy(VALUES * 1e300), "not finite"),
        (npy(VALUES)[:-1], "with 479 bytes of numbers, not 480"),
        (npy(VALUES) + b"0", "with 481 bytes of numbers, not 480"),
        (altered(b"(5, 4, 3)", b"(5,999999999,999999999)"[:9]), "of something else|with .* bytes"),
        (altered(b"(5, 4, 3), }", b"(5,4096,409)"), "of something else"),
        (altered(b"'<f4'", b"'|O4'"), "not of floats"),
        (altered(b"False", b"__im_"), "of something else"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535, "damaged header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 2000, "damaged header"),
        (b"\x93NUMPY\x04\x00\x10\x00" + b" " * 16, "damaged header"),
        (b"\x93NUMPY", "damaged header"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'", "damaged header"),
    ],
)
def test_other_npy_files_are_refused(data: bytes, came: str) -> None:
    """Nothing is unpickled, and what the header says is believed only where the bytes agree."""
    with pytest.raises(RequestError, match=came) as caught:
        read_npy(data, FIVE)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidTensor")
    assert "data: expected a tensor [5][H][W] of finite numbers" in caught.value.message


def test_npy_files_keep_to_max_pixels_by_their_header() -> None:
    """Before their numbers are looked at."""
    with pytest.raises(RequestError, match="expected at most 10 pixels") as caught:
        read_npy(npy(VALUES), Config(channels=5, max_pixels=10))
    assert caught.value.status == 413


@settings(max_examples=300, derandomize=True)
@given(st.data())
def test_any_damage_is_read_as_numpy_reads_it_or_refused(data: st.DataObject) -> None:
    """Bytes changed anywhere in the header: an answer is NumPy's own, everything else is a 400."""
    raw = bytearray(npy(VALUES.astype("<f4")))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(6, 127))] = data.draw(st.integers(0, 255))
    with suppress(RequestError):
        found = read_npy(raw, FIVE)
        assert np.array_equal(found, np.load(io.BytesIO(raw), allow_pickle=False).astype(np.float32))
