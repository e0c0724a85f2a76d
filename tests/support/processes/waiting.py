"""One wait for all tests: until something has happened, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

HANG = 600.0
"""Seconds after which what a test waits for is taken to be broken. No test may rest on anything happening sooner: others use
the same cores."""


def wait_until(happened: Callable[[], object], what: str = "what a test waits for") -> None:
    """Returns once something has happened. It looks again after a tenth of the time for which it has waited, at most a quarter of a
    second: what it asks takes cores from what it waits for."""
    begun = time.monotonic()
    while not happened():
        waited = time.monotonic() - begun
        assert waited < HANG, f"{what}: not in {HANG:g} s"
        time.sleep(min(max(0.02, waited / 10), 0.25))


class Gate:
    """A file: while it is there, the worker of an archive that names it as its `gate` keeps the batch that it was handed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = path.with_name(f"{path.name}.held")

    def __enter__(self) -> Gate:
        self._held.unlink(missing_ok=True)
        self.path.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        """Lets the worker go on, and all that come later."""
        self.path.unlink(missing_ok=True)

    def wait_held(self) -> None:
        """Returns once a worker keeps a batch."""
        wait_until(self._held.exists, "a worker was handed a batch")
