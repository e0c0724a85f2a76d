"""How a batch is worked through: in threads one by one, and through the model in chunks of one size, bisected when they fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

from camserve.core.errors import RequestError
from camserve.pictures.bounds.limits import Semaphore

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""In torch's own words: CUDA's, the CPU allocator's, cuBLAS' and cuDNN's."""

NO_MEMORY = -4
"""The `code` of OpenCV's errors (`StsNoMem`), which are no RuntimeErrors."""

S = TypeVar("S")
T = TypeVar("T")


def split_into_chunks(sizes: Sequence[Hashable], limit: int) -> list[list[int]]:
    """Group the positions of `sizes` by equal size, in order of appearance, at most `limit` in a chunk."""
    groups: dict[Hashable, list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(size, []).append(position)
    return [group[start : start + limit] for group in groups.values() for start in range(0, len(group), limit)]


def run_bisecting(
    items: Sequence[S],
    attempt: Callable[[Sequence[S]], Sequence[T]],
    blame: Callable[[S], RequestError | None] = lambda _: None,
) -> list[T | RequestError]:
    """Attempt all items at once; where that raises, each half by itself, down to single items (bisection).

    A single item that fails is a 507 `OutOfMemory` if memory ran out, else the error that it is `blame` with, else a 500
    `InternalError`, logged with its traceback.

    Raises:
        SystemExit: the GPU's context is broken for good; the server starts a new worker.
    """
    try:
        return list(attempt(items))
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        fault = guard(blame, items[0]) if len(items) == 1 and not out_of_memory else None
        if len(items) == 1 and not out_of_memory and fault is None:
            logger.exception("one picture failed")
        if is_poisoned(error):
            raise SystemExit("the CUDA context is broken: this worker ends, the server starts another") from error
        # The error itself is let go of here: its traceback holds the failed chunk's tensors.
        kind = type(error).__name__
    if out_of_memory:
        release_memory()
    if len(items) == 1:
        return [fault or _lone_failure(out_of_memory)]
    logger.warning("a chunk of %d pictures failed (%s): trying its halves", len(items), kind)
    middle = len(items) // 2
    return run_bisecting(items[:middle], attempt, blame) + run_bisecting(items[middle:], attempt, blame)


def guard(work: Callable[[S], T], entry: S) -> T | RequestError:
    """Return `work(entry)`, or the request's own error; anything unforeseen is logged and becomes a 500 for this request alone.

    The error is a fresh one: the traceback of the raised one would keep the decoded picture alive.
    """
    try:
        return work(entry)
    except RequestError as error:
        return RequestError(error.status, error.kind, error.message)
    except Exception as error:
        if is_out_of_memory(error):
            return RequestError(507, "OutOfMemory", "this picture does not fit into the worker's memory, even by itself")
        logger.exception("one request failed")
        return RequestError(500, "InternalError", "an unforeseen fault; the server's log says more")


def _lone_failure(out_of_memory: bool) -> RequestError:
    if out_of_memory:
        return RequestError(507, "OutOfMemory", "this picture does not fit into the worker's memory, even by itself")
    return RequestError(500, "InternalError", "the model failed on this picture; the server's log says more")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out: Python's, the CPU allocator's, OpenCV's, or a GPU's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if isinstance(error, SystemError) and error.__cause__ is not None:  # a C function of OpenCV's, of NumPy's own error
        return is_out_of_memory(error.__cause__)
    if getattr(error, "code", None) == NO_MEMORY:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back what torch caches on a GPU, before the next, smaller attempt."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_poisoned(error: BaseException) -> bool:
    """Return True if the CUDA context is broken for good: after an illegal access every later call fails as well."""
    if is_out_of_memory(error) or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class Fallible(Protocol):
    """What goes through steps, of which any may fail."""

    error: RequestError | None
    canvas: Any


AnyJob = TypeVar("AnyJob", bound=Fallible)

PIXELS_AT_ONCE = 100_000_000
"""Pixels that are decoded, or drawn on, at once: each may take a dozen bytes meanwhile. Ordinary pictures never reach it."""


class JobThreads:
    """Takes jobs through steps in threads: decoding and encoding release the interpreter lock.

    Attributes:
        count: how many threads.
        semaphore: held for the pixels that are in memory.
    """

    def __init__(self) -> None:
        self.count = max(1, min(4, os.cpu_count() or 1))
        self.semaphore = Semaphore(PIXELS_AT_ONCE)
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="camserve")

    def take(self, step: Callable[[AnyJob], None], jobs: Sequence[AnyJob], pixels: Callable[[AnyJob], int]) -> None:
        """Take each job without an error through a step.

        Args:
            pixels: how many a job has in memory meanwhile; what exceeds `PIXELS_AT_ONCE` waits.
        """

        def run(job: AnyJob) -> None:
            job.error = guard(step, job)
            if job.error:
                job.canvas = None  # memory that its neighbours may wait for

        def wait_and_run(job: AnyJob) -> None:
            with self.semaphore.acquire(pixels(job)):
                run(job)

        open_jobs = [job for job in jobs if job.error is None]
        if len(open_jobs) < 2:
            for job in open_jobs:
                run(job)
        else:
            list(self._threads.map(wait_and_run, open_jobs))
