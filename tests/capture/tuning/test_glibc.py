"""What the C library does with memory that tensors let go of."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest

from camserve.capture.tuning import glibc


def test_freed_memory_is_kept() -> None:
    """A tensor's pages are there again for the next; without the setting each pass faults them all."""
    script = (
        "import resource, sys, torch\n"
        "from camserve.capture.tuning.glibc import keep_freed_memory\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else True\n"
        "for _ in range(30): torch.ones(10 << 20)\n"
        "before = faults()\n"
        "for _ in range(10): torch.ones(10 << 20)\n"
        "print(kept, faults() - before)"
    )
    found = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True)
        kept, faults = done.stdout.split()
        assert kept == "True"
        found[how] = int(faults)
    assert found["keep"] < 20480 < found["leave"]  # of 102400 pages


@pytest.mark.parametrize(
    ("most", "accepted"),
    [
        (1 << 30, [(-3, 1 << 30), (-8, 1), (-1, 1 << 30)]),
        (32 << 20, [(-3, 32 << 20), (-8, 1), (-1, 1 << 30)]),
        (0, []),
    ],
)
def test_an_older_glibc_takes_a_smaller_threshold(
    most: int, accepted: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes none is left alone: the others by themselves would make every large tensor a mapping, and slower."""
    taken: list[tuple[int, int]] = []

    def mallopt(what: int, value: int) -> int:
        good = what != -3 or value <= most
        taken.extend([(what, value)] * good)
        return int(good)

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))

    assert glibc.keep_freed_memory() is bool(accepted)
    assert taken == accepted


def test_the_collector_looks_at_everything_rarely() -> None:
    """Young objects are looked at as often as ever; a parser of JSON makes millions, none of which is garbage."""
    before = gc.get_threshold()
    try:
        glibc.collect_rarely()
        assert gc.get_threshold() == (*before[:2], 1_000)
        kept: list[object] = []
        full = gc.get_stats()[2]["collections"]
        kept.extend([] for _ in range(2_000_000))
        assert gc.get_stats()[2]["collections"] - full <= 1
    finally:
        gc.set_threshold(*before)
