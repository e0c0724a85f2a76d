"""Limits that threads share: on memory, a weighted semaphore and a quota; on time, a deadline."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from camserve.core.errors import RequestError

SEND_LESS = "try again later, or send fewer or smaller pictures, or ask for fewer targets"


class Semaphore:
    """A weighted semaphore: the sizes of all holders add up to at most `limit`. One of a larger size holds it alone.

    Size 0 never waits. Waiters are served in no particular order.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, size: int) -> Iterator[None]:
        """Hold the semaphore with this size while the context lasts; waits until it fits beside the other holders."""
        with self._changed:
            self._changed.wait_for(lambda: not size or self._inside + size <= max(self._limit, size))
            self._inside += size
        try:
            yield
        finally:
            with self._changed:
                self._inside -= size
                self._changed.notify_all()


class Quota:
    """An amount that threads take from until it is used up.

    Attributes:
        total: the amount.
        exceeded: whether a `take` has failed; it stays True.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.exceeded = False
        self._left = total
        self._lock = threading.Lock()

    def take(self, amount: int) -> bool:
        """Take an amount, if that much is left; returns False if it is not."""
        with self._lock:
            if amount > self._left:
                self.exceeded = True
                return False
            self._left -= amount
            return True


class Deadline:
    """When the work on a batch has to end.

    Args:
        seconds: from now on; infinity: never.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._started = time.monotonic()
        self._share = 1.0

    def until(self, share: float) -> Deadline:
        """Return the deadline of a part of the work, after this share of the time: what comes later is left the rest."""
        part = copy.copy(self)
        part._share = share
        return part

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() > self._started + self._share * self.seconds

    def check(self, what: str) -> None:
        """Raise `error` once it has passed."""
        if self.over:
            raise self.error(what)

    def error(self, what: str) -> RequestError:
        """Return 503 `Busy`; `what` was left to do."""
        return RequestError(503, "Busy", f"the time of this batch, {self.seconds:g} s, was over before {what}: {SEND_LESS}")


FOREVER = Deadline()
