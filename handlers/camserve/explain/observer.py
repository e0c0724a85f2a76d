"""What the pipeline tells whoever watches it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from camserve.explain.sampling import Budget

MODES = ("predict", "explain", "page")
MISSED = ("budget", "failed")
"""Why a picture that was sampled is not measured: its map would have taken too much time; making or measuring it failed."""


ROWS = 16
"""Of about how many rows of the input, evenly spread, its statistics are taken."""


@dataclass(frozen=True)
class Observation:
    """What is kept of one picture until it is measured.

    Attributes:
        maps: the raw maps `[h, w]` of the most probable class and of the next, where it was made.
        rows: some rows of the model's input, see `sample_rows`.
        scores: (class index, probability) of the most probable class and of the next, where there is one.
        size: (width, height) of the picture.
    """

    maps: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.float32]
    scores: tuple[tuple[int, float], ...]
    size: tuple[int, int]


def sample_rows(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows `[C, r, W]` of the model's input `[C, H, W]`, copied."""
    return picture[:, :: max(1, picture.shape[1] // ROWS)].copy()


class Observer(Protocol):
    """Told of every answer, every stage, and of those pictures that it samples.

    Attributes:
        budget: what maps that take passes of their own may cost beside the predictions.
    """

    budget: Budget

    def samples(self) -> bool:
        """Whether the next picture is to be measured."""
        ...

    def observe(self, look: Observation) -> None:
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


class NullObserver:
    """A observer that looks away."""

    budget = Budget()

    def samples(self) -> bool:
        """Never."""
        return False

    def observe(self, look: Observation) -> None:
        """Nothing is kept."""

    def missed(self, reason: str, pictures: int) -> None:
        """Nothing is counted."""

    def stage(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Nothing is timed."""
        return nullcontext()

    def replied(self, mode: str, status: int, size: int) -> None:
        """Nothing is counted."""
