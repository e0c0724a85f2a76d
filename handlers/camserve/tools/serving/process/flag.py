"""A flag that a signal's handler may set."""

from __future__ import annotations

import time

STEP = 0.02
"""Seconds between two looks at the flag."""


class Flag:
    """Is set once, and waited for, by any thread and from a signal's handler.

    `threading.Event` would not do: a handler runs in the main thread, in the middle of whatever that does, and where it waits for
    the event it may hold the lock that `set` takes.
    """

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Sets it."""
        self._set = True

    def wait(self, seconds: float) -> bool:
        """Returns once it is set, or after so many seconds; whether it is set."""
        end = time.monotonic() + seconds
        while not self._set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STEP))
        return self._set
