"""A share of the time: what may be spent beside the work itself."""

from __future__ import annotations

from collections.abc import Callable

SAVED = 1.0
"""Seconds of the share that may be left for later: what was not needed for a day must not be spent at once."""


class Budget:
    """Allows something as long as it has taken no more than its share of the work's time.

    Args:
        share: of the work on a batch, by how many pictures it holds; None: there is no limit.
    """

    def __init__(self, share: Callable[[int], float] | None = None) -> None:
        self._share = share
        self._allowed = 0.0
        self._spent = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._share is not None

    def allows(self) -> bool:
        """Whether it may be done once more."""
        return self._share is None or self._spent <= self._allowed

    def add(self, pictures: int, work: float, spent: float) -> None:
        """Takes note of seconds of work on a batch of so many pictures, and of those spent beside it."""
        self._spent += spent
        if self._share:
            self._allowed = min(self._allowed + self._share(pictures) * work, self._spent + SAVED)
