"""What the pipeline tells whoever observes it: monitoring, or the tool that makes a reference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from camserve.core.messages import Image, ImageInfo, Score
from camserve.explain.sampling import Budget

MODES = ("predict", "explain", "page")
MISSED = ("budget", "failed")
"""Why a sampled picture is not measured: its maps would have cost more than the budget, or something failed."""


ROWS = 16
"""About how many rows of the model's input, evenly spread, are kept for its statistics."""


@dataclass(frozen=True)
class Origin:
    """Where an observation comes from: what a prediction is kept with, should it be worth keeping.

    Attributes:
        time: seconds since 1970.
        image: as it came: a picture's file, or a tensor.
        info: the picture's size and view; None: a tensor, or not known.
        classes: as the prediction lists them.
        explain: an explanation was asked for.
        request_id: the client's, or the one that the host made; "" where there was no request.
        answer_id: the one that the answer carries.
        instance: the place in a request of several pictures.
    """

    time: float
    image: Image = field(repr=False)
    info: ImageInfo | None
    classes: tuple[Score, ...]
    explain: bool = False
    request_id: str = ""
    answer_id: str = ""
    instance: int = 0


@dataclass(frozen=True)
class Observation:
    """What is kept of one prediction until it is measured.

    Attributes:
        maps: the raw maps `[h, w]` of the most probable class and of the next, where it was made.
        rows: some rows of the model's input, see `sample_rows`.
        scores: (class index, probability) of the most probable class and of the next, where there is one.
        size: (width, height) of the picture.
        call: the position of its call in the batch.
        origin: where it comes from, where the observer keeps anything.
    """

    maps: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.float32]
    scores: tuple[tuple[int, float], ...]
    size: tuple[int, int]
    call: int = 0
    origin: Origin | None = None


def sample_rows(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy about `ROWS` rows `[C, r, W]` of the model's input `[C, H, W]`."""
    return picture[:, :: max(1, picture.shape[1] // ROWS)].copy()


class Observer(Protocol):
    """Is told of every answer, of every stage's seconds, and of those predictions that it samples.

    Attributes:
        budget: what maps may cost that take backward passes only to be measured.
        keeps: whether it is told where observations come from, because it may keep them.
    """

    budget: Budget
    keeps: bool

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
    keeps = False

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
