"""What the model looks at, on every prediction: measured in a thread of its own, and told once an interval. No torch."""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from camserve.core.config import Monitoring
from camserve.explain.degenerate import REASONS
from camserve.explain.observer import MISSED, MODES, Observation
from camserve.explain.sampling import Budget
from camserve.monitoring import metrics
from camserve.monitoring.exporter import Exporter, StageTimes
from camserve.monitoring.measure import Measured, measure
from camserve.monitoring.reference import CLASS, FILE, UNSEEN, Counts, Provenance, Reference, StaleReference, load
from camserve.monitoring.statistics import Scale

logger = logging.getLogger(__name__)

T = TypeVar("T")

OUTCOMES = ("ok", "client_error", "server_error")
CHUNK = 64
"""After how many pictures the thread measures what has come: it bounds the memory that waiting pictures take."""
MOST_TIMES = 10_000
"""After how many times of stages they are counted: few pictures may be measured, and nothing else wake the thread."""
OF_ONE, OF_MANY = 0.055, 0.01
"""Which share of the passes' time maps may take that need passes of their own: of a lone picture's, of a large batch's."""


class Monitor:
    """Counts, times and measures; a thread of its own does the work, and exports once an interval.

    Args:
        settings: rate and interval.
        scale: how the model's input was normalised; None: not known.
        reference: the bins; None: maps are counted, not binned, and `why` says why there is none.
    """

    def __init__(
        self,
        settings: Monitoring,
        exporter: Exporter,
        scale: Scale | None,
        reference: Reference | None = None,
        why: str = "",
    ) -> None:
        self._settings = settings
        self._exporter = exporter
        self._scale = scale
        self._reference = reference
        self._why = why
        self.budget = _budget(settings.budget)
        self._looks: deque[Observation] = deque()
        self._times: deque[tuple[str, float]] = deque()
        self._stages = StageTimes(exporter)
        self._work = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="camserve monitor", daemon=True)
        self._export_zeros()
        if reference is not None:
            export_reference(reference, exporter)

    def described(self) -> dict[str, Any]:
        """What the model's metadata say: rate, interval, and which reference of how many pictures, or why there is none."""
        found = {"rate": self._settings.rate, "interval": self._settings.interval}
        if self._reference is None:
            return {**found, "reference": None, "why": self._why}
        told = {"id": self._reference.digest, "images": self._reference.images, "classes": len(self._reference.groups)}
        return {**found, "reference": told}

    def start(self) -> None:
        """Exports what is known already, forgets what the self-test took, and starts the thread."""
        self._times.clear()
        self._exporter.flush()
        self._thread.start()
        atexit.register(self.close)

    def samples(self) -> bool:
        """Whether the next picture is to be measured."""
        return self._settings.rate >= 1 or random.random() < self._settings.rate  # noqa: S311 no secret

    def observe(self, look: Observation) -> None:
        """Keeps a picture until it is measured."""
        self._looks.append(look)
        if len(self._looks) >= CHUNK:
            self._wake.set()

    def missed(self, reason: str, pictures: int) -> None:
        """Counts pictures that were sampled, and are not measured."""
        self._exporter.add(metrics.UNMEASURED, (reason,), pictures)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Times a stage that ends without an exception."""
        return _Timed(name, self._times)

    def replied(self, mode: str, status: int, size: int) -> None:
        """Counts one answer and its bytes."""
        outcome = OUTCOMES[0] if status < 400 else OUTCOMES[1] if status < 500 else OUTCOMES[2]
        self._exporter.add(metrics.REQUESTS, (mode, outcome))
        self._exporter.add(metrics.RESPONSE_BYTES, (mode,), size)
        if len(self._times) >= MOST_TIMES:
            self._wake.set()

    def flush(self) -> None:
        """Measures what has come, and exports all that has changed."""
        self._digest()
        self._exporter.flush()

    def close(self) -> None:
        """Exports for the last time."""
        if not self._closed:
            self._closed = True
            self._wake.set()
            atexit.unregister(self.close)
            self.flush()

    def _run(self) -> None:
        due = time.monotonic() + self._settings.interval
        while not self._closed:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self._digest()
                if time.monotonic() >= due:
                    due = time.monotonic() + self._settings.interval
                    self._exporter.flush()
            except Exception:  # whatever is wrong with one interval, the next one is still to be told
                logger.exception("monitoring failed")

    def _digest(self) -> None:
        with self._work:
            self._stages.add(_taken(self._times))
            looks = _taken(self._looks)
            try:
                if looks:
                    self._count(measure(looks, self._scale))
            except Exception:
                self.missed("failed", len(looks))
                raise

    def _count(self, found: Measured) -> None:
        self._exporter.add(metrics.MAPS, (), len(found.targets))
        for reason in filter(None, found.reasons):
            self._exporter.add(metrics.DEGENERATE, (reason,))
        if self._reference is None:
            return
        for name, counts in self._reference.counted(found).items():
            for place in np.flatnonzero(counts):
                self._exporter.add(metrics.MAP_BIN, (name, str(place), self._reference.digest), int(counts[place]))

    def _export_zeros(self) -> None:
        """Makes every series appear before there is anything to count: Prometheus cannot see an increase from nothing."""
        add = self._exporter.add
        for mode in MODES:
            add(metrics.RESPONSE_BYTES, (mode,), 0)
            for outcome in OUTCOMES:
                add(metrics.REQUESTS, (mode, outcome), 0)
        add(metrics.MAPS, (), 0)
        for reason in REASONS:
            add(metrics.DEGENERATE, (reason,), 0)
        for reason in MISSED:
            add(metrics.UNMEASURED, (reason,), 0)
        self._exporter.set(metrics.MONITORED, (), self._settings.rate)


def _budget(share: float | None) -> Budget:
    if share is None:
        return Budget(lambda pictures: OF_MANY + (OF_ONE - OF_MANY) / pictures)
    return Budget(lambda _pictures: share) if share < 1 else Budget()


@dataclass
class _Timed:
    """Appends (name, seconds) of a block that ends without an exception."""

    name: str
    times: deque[tuple[str, float]]
    start: float = field(default=0.0)

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.times.append((self.name, time.perf_counter() - self.start))


def _taken(waiting: deque[T]) -> list[T]:
    """All that waits now; others may append meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


def open_monitor(
    settings: Monitoring, *, name: str, version: str, scale: Scale | None, directory: Path | str, made: Provenance
) -> Monitor:
    """A monitor, not yet started, of a model whose unpacked archive is in `directory`, with the reference that it holds."""
    try:
        reference = load(directory, made)
        why = "" if reference else f"the archive holds no {FILE}; scripts/reference.py makes one"
    except StaleReference as error:
        reference, why = None, str(error)
        logger.warning("camserve: the drift of the maps cannot be watched: %s", why)
    return Monitor(settings, Exporter(name, version), scale, reference, why)


def export_reference(reference: Reference, exporter: Exporter) -> None:
    """Exports the shares of the reference as gauges, and its bins as counters at 0.

    The class mix has the statistic `class`, whose bins are groups of classes.
    """
    known = reference.known_images
    _export_shares(reference, exporter, CLASS, reference.group_images)
    for group in np.flatnonzero(known):
        exporter.set(metrics.GROUP_IMAGES, (str(group), reference.digest), int(known[group]))
    for name in reference.statistics:
        _export_shares(reference, exporter, name, reference.table(name).sum(0))
        shares = reference.shares(name)
        for group in np.flatnonzero(known):
            if group != UNSEEN or shares[group].any():
                for place, share in enumerate(shares[group]):
                    exporter.set(metrics.GROUP_REFERENCE, (name, str(place), str(group), reference.digest), float(share))


def _export_shares(reference: Reference, exporter: Exporter, name: str, counts: Counts) -> None:
    exporter.set(metrics.REFERENCE_IMAGES, (name, reference.digest), int(counts.sum()))
    for place, share in enumerate(counts / counts.sum()):
        exporter.set(metrics.REFERENCE, (name, str(place), reference.digest), float(share))
        exporter.add(metrics.MAP_BIN, (name, str(place), reference.digest), 0)
