"""A flag that a signal handler may set."""

from __future__ import annotations

import time

STEP = 0.02
"""Seconds between two looks at the flag."""


class SignalFlag:
    """Is set once, and waited for, by any thread and by a signal handler.

    `threading.Event` would not do: a handler interrupts the main thread at any line, and where that waits for the event it may
    hold the lock that `set` takes.
    """

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Returns whether it is set."""
        return self._set

    def set(self) -> None:
        """Sets it."""
        self._set = True

    def wait(self, seconds: float) -> bool:
        """Waits until it is set, at most so many seconds; returns whether it is set."""
        end = time.monotonic() + seconds
        while not self._set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STEP))
        return self._set
