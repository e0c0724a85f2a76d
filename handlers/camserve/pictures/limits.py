"""What may be in memory at once: a gate that work waits at, and an allowance that is used up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Semaphore:
    """Lets work pass, in several threads, while the sum of its sizes stays within a limit; larger work passes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, size: int) -> Iterator[None]:
        """Waits until there is room for work of this size, and is that work's place while it lasts."""
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
    """An amount that several threads share.

    Attributes:
        total: the amount.
        spent: whether something did not fit; that stays so.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.spent = False
        self._left = total
        self._lock = threading.Lock()

    def take(self, amount: int) -> bool:
        """Takes so much of it where so much is left; whether it did."""
        with self._lock:
            if amount > self._left:
                self.spent = True
                return False
            self._left -= amount
            return True
