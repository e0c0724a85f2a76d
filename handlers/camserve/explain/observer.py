"""What the pipeline tells whoever observes it: monitoring, or the tool that makes a reference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from camserve.explain.sampling import Budget

MODES = ("predict", "explain", "page")
MISSED = ("budget", "failed")
"""Why a sampled picture is not measured: its maps would have cost more than the budget, or something failed."""


ROWS = 16
"""About how many rows of the model's input, evenly spread, are kept for its statistics."""


@dataclass(frozen=True)
class Observation:
    """What is kept of one prediction until it is measured.

    Attributes:
        maps: the raw maps `[h, w]` of the most probable class and of the next, where it was made.
        rows: some rows of the model's input, see `sample_rows`.
        scores: (class index, probability) of the most probable class and of the next, where there is one.
        size: (width, height) of the picture.
        call: the position of its call in the batch.
    """

    maps: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.float32]
    scores: tuple[tuple[int, float], ...]
    size: tuple[int, int]
    call: int = 0


def sample_rows(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy about `ROWS` rows `[C, r, W]` of the model's input `[C, H, W]`."""
    return picture[:, :: max(1, picture.shape[1] // ROWS)].copy()


class Observer(Protocol):
    """Is told of every answer, of every stage's seconds, and of those predictions that it samples.

    Attributes:
        budget: what maps may cost that take backward passes only to be measured.
    """

    budget: Budget

    def samples(self) -> bool:
        """Draw whether the next picture is to be measured."""
        ...

    def observe(self, observation: Observation) -> None:
        """Take one prediction that is to be measured."""
        ...

    def missed(self, reason: str, pictures: int) -> None:
        """Take note that so many sampled pictures are not measured, for one of the reasons `MISSED`."""
        ...

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Time one of `metrics.STAGES`."""
        ...

    def replied(self, mode: str, status: int, size: int) -> None:
        """Take note of one answer of `size` bytes to a request of one of `MODES`."""
        ...


class NullObserver:
    """An observer that does nothing."""

    budget = Budget()

    def samples(self) -> bool:
        """Never sample."""
        return False

    def observe(self, observation: Observation) -> None:
        """Keep nothing."""

    def missed(self, reason: str, pictures: int) -> None:
        """Count nothing."""

    def stage(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Time nothing."""
        return nullcontext()

    def replied(self, mode: str, status: int, size: int) -> None:
        """Count nothing."""
