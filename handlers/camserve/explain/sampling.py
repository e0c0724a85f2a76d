"""Which predictions are measured, and what measuring may cost beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_SAVINGS = 1.0
"""Seconds that may be saved up: a quiet day must not be followed by a burst of backward passes."""

OVERLAP_EVERY = 4
"""Where measuring takes backward passes, the next class's map, for the overlap, is made in one chunk of so many."""


class Budget:
    """Limits what measuring costs to a share of the model's time (a token bucket).

    Args:
        share: of the model's time on a batch, by the number of its pictures; None: there is no limit.
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
        """Return True if one more backward pass fits."""
        return self._share is None or self._spent <= self._allowed

    def add(self, pictures: int, work: float, spent: float) -> None:
        """Record seconds of work on a batch of so many pictures, and the seconds that measuring took beside it."""
        self._spent += spent
        if self._share:
            self._allowed = min(self._allowed + self._share(pictures) * work, self._spent + MAX_SAVINGS)


@dataclass(frozen=True)
class Plan:
    """What is measured of one chunk.

    Attributes:
        rows: places in the chunk of the pictures whose raw maps are kept.
        maps: for how many of a picture's most probable classes.
        skipped: how many pictures were sampled, and are left out because their maps would cost too much.
    """

    rows: tuple[int, ...] = ()
    maps: int = 0
    skipped: int = 0


NOTHING = Plan()


class SamplingPolicy:
    """Decides what is measured, once for each chunk, never by what is in the pictures.

    Args:
        free: maps cost no backward pass (see `capture.choose.pooled`): every sampled picture is measured, with two maps.
    """

    def __init__(self, *, free: bool) -> None:
        self._free = free
        self._chunks = 0

    def plan(self, count: int, samples: Callable[[], bool], budget: Budget) -> Plan:
        """Plan a chunk of `count` pictures; `samples` draws whether the next picture is to be measured."""
        rows = tuple(row for row in range(count) if samples())
        if not rows:
            return NOTHING
        if not self._free and not budget.allows():
            return Plan(skipped=len(rows))
        self._chunks += 1
        overlap = self._free or not budget.limited or self._chunks % OVERLAP_EVERY == 1
        return Plan(rows, 2 if overlap else 1)
