"""Groups of one size, in chunks, halved when a chunk fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest

from camserve.core.errors import RequestError
from camserve.pipeline.chunks import is_out_of_memory, run_bisecting, split_into_chunks


def test_chunks_keep_sizes_together_and_within_the_limit() -> None:
    """Every position once, one size a chunk, none larger than the limit."""
    assert split_into_chunks(["a", "b", "a", "a", "b"], 2) == [[0, 2], [3], [1, 4]]
    assert split_into_chunks([], 4) == []


def test_a_chunk_that_succeeds_is_tried_once() -> None:
    """No second forward pass without need."""
    tried: list[list[int]] = []

    def attempt(items: Sequence[int]) -> list[int]:
        tried.append(list(items))
        return [item * 10 for item in items]

    assert run_bisecting([1, 2, 3], attempt) == [10, 20, 30]
    assert tried == [[1, 2, 3]]


def test_out_of_memory_halves_until_it_fits() -> None:
    """What fits in pieces is answered; only what cannot fit alone is a 507."""
    tried: list[int] = []

    def attempt(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 2 or 7 in items:
            raise MemoryError
        return list(items)

    outcome = run_bisecting([1, 2, 3, 4, 5, 6, 7, 8], attempt)

    assert outcome[:6] == [1, 2, 3, 4, 5, 6]
    assert outcome[7] == 8
    lone = outcome[6]
    assert isinstance(lone, RequestError)
    assert (lone.status, lone.kind) == (507, "OutOfMemory")
    assert tried == [8, 4, 2, 2, 4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_torchs_own_errors_count_as_out_of_memory(text: str) -> None:
    """The CPU allocator raises a RuntimeError, as CUDA used to."""

    def attempt(_items: Sequence[int]) -> list[int]:
        raise RuntimeError(text)

    (lone,) = run_bisecting([1], attempt)

    assert isinstance(lone, RequestError)
    assert lone.status == 507


def test_one_picture_that_breaks_the_model_fails_alone_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the model's is a 500 for that picture, with a traceback in the log and none in the answer."""

    def attempt(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise ZeroDivisionError("secret detail")
        return list(items)

    with caplog.at_level(logging.WARNING):
        outcome = run_bisecting([1, 2, 3, 4], attempt)

    assert [outcome[0], outcome[1], outcome[3]] == [1, 2, 4]
    assert isinstance(outcome[2], RequestError)
    assert (outcome[2].status, outcome[2].kind) == (500, "InternalError")
    assert "secret" not in outcome[2].message
    assert "Traceback" in caplog.text


def _raised(work: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 whichever it is
        work()
    return caught.value


def test_opencvs_errors_count_as_out_of_memory() -> None:
    """Its own, and what Python makes of NumPy's when OpenCV lets it through; its other errors do not."""
    small = np.zeros((1, 1), np.uint8)
    passed_on = SystemError("<built-in function convertScaleAbs> returned a result with an exception set")
    passed_on.__cause__ = MemoryError()

    assert is_out_of_memory(_raised(lambda: cv2.resize(small, (2**20, 2**20))))
    assert is_out_of_memory(passed_on)
    assert not is_out_of_memory(_raised(lambda: cv2.resize(small, (0, 0))))
    assert not is_out_of_memory(SystemError("another"))


def test_whoever_is_to_blame_harms_no_neighbour(caplog: pytest.LogCaptureFixture) -> None:
    """Finding out whose fault it was may fail as well."""

    def attempt(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise ZeroDivisionError("the first fault")
        return list(items)

    def blamed(_: int) -> RequestError | None:
        raise ValueError("the second fault")

    outcome = run_bisecting([1, 2, 3], attempt, blamed)

    assert outcome[:2] == [1, 2]
    assert isinstance(outcome[2], RequestError)
    assert outcome[2].status == 500
    assert "the first fault" in caplog.text
    assert "the second fault" in caplog.text
