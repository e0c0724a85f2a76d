"""What becomes of memory that is let go of: by the C library, and by Python's collector."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX
KEPT = 1 << 30
"""Bytes that may lie free at the end of the heap, and from which on an allocation is a mapping of its own."""
OLDER = 32 << 20
"""The same of mappings, where glibc is one that takes no more (half of its HEAP_MAX_SIZE)."""
RARELY = 1_000
"""Collections of older objects between two of all objects; Python's own is 10."""


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for the next allocation; whether it does.

    By default it gives each large tensor back to the kernel and gets empty pages for the next, which then fault one by one:
    with EfficientNet-Lite0 that takes a third of a forward pass on the CPU. The process keeps what it needed at its peak, in one
    heap for all threads (one each would keep its own, and have nothing for the others when memory is short); `give_back` is for
    peaks that are rare. Left alone where there is no glibc, and where the environment settles
    it (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`).
    """
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    if not any(mallopt(_MMAP_THRESHOLD, limit) for limit in (KEPT, OLDER)):
        return False  # nothing else either: any other threshold would keep this one at its smallest, 128 KiB
    mallopt(_ARENA_MAX, 1)
    return bool(mallopt(_TRIM_THRESHOLD, KEPT))


def collect_rarely() -> None:
    """Have Python's collector look through all objects a hundred times as rarely as by default; young ones as often as ever.

    It looks through all of them again and again while a body of JSON is parsed: 32 MiB of `[],` take 7 s, and 2 s so.
    """
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)


def give_back() -> None:
    """Returns to the kernel what lies free in the heap of every thread; nothing where there is no glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
