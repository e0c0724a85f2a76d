"""A share of the time: what may be spent beside the work itself."""

from __future__ import annotations


class Budget:
    """Allows something as long as it has taken no more than `share` of the work's time; None: always."""

    def __init__(self, share: float | None) -> None:
        self._share = share
        self._work = 0.0
        self._spent = 0.0

    def allows(self) -> bool:
        """Whether it may be done once more."""
        return self._share is None or self._spent <= self._share * self._work

    def add(self, work: float, spent: float) -> None:
        """Takes note of seconds of work, and of those spent beside it."""
        self._work += work
        self._spent += spent
