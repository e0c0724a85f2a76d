"""What the pipeline tells whoever watches it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from camserve.looks import Look

MODES = ("predict", "explain", "page")


class Watcher(Protocol):
    """Told of every answer, every stage, and of those pictures that it samples."""

    def samples(self) -> bool:
        """Whether the next picture is to be measured."""
        ...

    def saw(self, look: Look) -> None:
        """One picture that is to be measured."""
        ...

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Times one of `metrics.STAGES`."""
        ...

    def replied(self, mode: str, status: int, size: int) -> None:
        """One answer of `size` bytes to a request of one of `MODES`."""
        ...


class Unwatched:
    """A watcher that looks away."""

    def samples(self) -> bool:
        """Never."""
        return False

    def saw(self, look: Look) -> None:
        """Nothing is kept."""

    def stage(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Nothing is timed."""
        return nullcontext()

    def replied(self, mode: str, status: int, size: int) -> None:
        """Nothing is counted."""
