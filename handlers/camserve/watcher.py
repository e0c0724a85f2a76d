"""What the pipeline tells whoever watches it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from camserve.budget import Budget
from camserve.looks import Look

MODES = ("predict", "explain", "page")
MISSED = ("budget", "failed")
"""Why a picture that was sampled is not measured: its map would have taken too much time; making or measuring it failed."""


class Watcher(Protocol):
    """Told of every answer, every stage, and of those pictures that it samples.

    Attributes:
        budget: what maps that take passes of their own may cost beside the predictions.
    """

    budget: Budget

    def samples(self) -> bool:
        """Whether the next picture is to be measured."""
        ...

    def saw(self, look: Look) -> None:
        """One picture that is to be measured."""
        ...

    def missed(self, reason: str, pictures: int) -> None:
        """So many pictures that were sampled are not measured, for one of the reasons `MISSED`."""
        ...

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Times one of `metrics.STAGES`."""
        ...

    def replied(self, mode: str, status: int, size: int) -> None:
        """One answer of `size` bytes to a request of one of `MODES`."""
        ...


class Unwatched:
    """A watcher that looks away."""

    budget = Budget()

    def samples(self) -> bool:
        """Never."""
        return False

    def saw(self, look: Look) -> None:
        """Nothing is kept."""

    def missed(self, reason: str, pictures: int) -> None:
        """Nothing is counted."""

    def stage(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Nothing is timed."""
        return nullcontext()

    def replied(self, mode: str, status: int, size: int) -> None:
        """Nothing is counted."""
