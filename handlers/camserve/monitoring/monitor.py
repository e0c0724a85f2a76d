"""Measures predictions in a thread of its own, and exports the counts once an interval. No torch."""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from camserve.core.config import Config
from camserve.core.config.watching import Monitoring
from camserve.explain.degenerate import REASONS
from camserve.explain.observer import MISSED, MODES, Observation
from camserve.explain.sampling import Budget
from camserve.monitoring import metrics
from camserve.monitoring.evidence.keeper import Keeper
from camserve.monitoring.evidence.records import Source
from camserve.monitoring.exporter import Exporter, StageHistograms
from camserve.monitoring.measure import Measurements, measure
from camserve.monitoring.reference import CLASS, FILE, UNSEEN, Counts, Provenance, Reference, StaleReference, load
from camserve.monitoring.statistics import Scale

logger = logging.getLogger(__name__)

T = TypeVar("T")

OUTCOMES = ("ok", "client_error", "server_error")
CHUNK = 64
"""Wake the thread at this many observations: it bounds the memory that those waiting take."""
MAX_QUEUED_TIMINGS = 10_000
"""Wake the thread at this many stage timings; with a low sampling rate, pictures alone would not."""
OVERHEAD_SINGLE, OVERHEAD_BATCH = 0.055, 0.01
"""Extra backward passes for monitoring may take this share of the model's time: 5.5 % for a single picture, falling to 1 %
for large batches."""


class Monitor:
    """Observes a pipeline: counts, times and measures. A thread of its own does the work, and exports once an interval.

    Args:
        settings: rate, interval and budget.
        scale: how the model's input was normalised; None: not known.
        reference: what drift is measured against; None: maps are counted, not binned.
        why: why there is no reference.
        keeper: keeps evidence; None: nothing is kept.

    Attributes:
        budget: what maps that take passes of their own may cost.
        keeps: whether it is to be told where observations come from.
    """

    def __init__(
        self,
        settings: Monitoring,
        exporter: Exporter,
        scale: Scale | None,
        reference: Reference | None = None,
        why: str = "",
        *,
        keeper: Keeper | None = None,
    ) -> None:
        self.keeps = keeper is not None
        self._keeper = keeper
        self._settings = settings
        self._exporter = exporter
        self._scale = scale
        self._reference = reference
        self._why = why
        self.budget = _budget(settings.budget)
        self._observations: deque[Observation] = deque()
        self._times: deque[tuple[str, float]] = deque()
        self._stages = StageHistograms(exporter)
        self._work = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="camserve monitor", daemon=True)
        self._export_zeros()
        if reference is not None:
            export_reference(reference, exporter)

    def describe_evidence(self) -> dict[str, Any] | None:
        """Describes what is kept, and where; None: nothing is."""
        return None if self._keeper is None else self._keeper.describe()

    def describe(self) -> dict[str, Any]:
        """Describes the monitoring for the model's metadata: rate, interval, and the reference or why there is none."""
        settings = {"rate": self._settings.rate, "interval": self._settings.interval}
        if self._reference is None:
            return {**settings, "reference": None, "why": self._why}
        digest, images, classes = self._reference.digest, self._reference.images, len(self._reference.groups)
        return {**settings, "reference": {"id": digest, "images": images, "classes": classes}}

    def start(self) -> None:
        """Drops the self-test's timings, exports every series as it is, and starts the thread."""
        self._times.clear()
        self._exporter.flush()
        self._thread.start()
        if self._keeper is not None:
            self._keeper.start()
        atexit.register(self.close)

    def samples(self) -> bool:
        """Decides whether the next picture is measured."""
        return self._settings.rate >= 1 or random.random() < self._settings.rate  # noqa: S311 no secret

    def observe(self, observation: Observation) -> None:
        """Queues a picture to be measured."""
        if self._keeper is not None:
            observation = self._keeper.admit(observation)
        self._observations.append(observation)
        if len(self._observations) >= CHUNK or (self._keeper is not None and self._keeper.pressed):
            self._wake.set()

    def missed(self, reason: str, pictures: int) -> None:
        """Counts pictures that were sampled but not measured."""
        self._exporter.add(metrics.UNMEASURED, (reason,), pictures)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Times a stage; one that raises is not counted."""
        return _Timed(name, self._times)

    def replied(self, mode: str, status: int, size: int) -> None:
        """Counts one answer and its bytes."""
        outcome = OUTCOMES[0] if status < 400 else OUTCOMES[1] if status < 500 else OUTCOMES[2]
        self._exporter.add(metrics.REQUESTS, (mode, outcome))
        self._exporter.add(metrics.RESPONSE_BYTES, (mode,), size)
        if len(self._times) >= MAX_QUEUED_TIMINGS:
            self._wake.set()

    def flush(self) -> None:
        """Measures what waits, and exports all that has changed."""
        self._digest()
        self._exporter.flush()

    def close(self) -> None:
        """Ends the thread, and exports for the last time."""
        if not self._closed:
            self._closed = True
            self._wake.set()
            atexit.unregister(self.close)
            self._digest()
            if self._keeper is not None:
                self._keeper.close()
            self._exporter.flush()

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
            except Exception:  # a failing interval must not end monitoring
                logger.exception("monitoring failed")

    def _digest(self) -> None:
        with self._work:
            self._stages.add(_drain(self._times))
            observations = _drain(self._observations)
            try:
                measurements = measure(observations, self._scale) if observations else None
                if measurements is not None:
                    self._count(measurements)
            except Exception:
                self.missed("failed", len(observations))
                if self._keeper is not None:
                    self._keeper.forget(observations)
                raise
            if self._keeper is not None and measurements is not None:
                self._keeper.consider(observations, measurements)

    def _count(self, measurements: Measurements) -> None:
        self._exporter.add(metrics.MAPS, (), len(measurements.targets))
        for reason in filter(None, measurements.reasons):
            self._exporter.add(metrics.DEGENERATE, (reason,))
        if self._reference is None:
            return
        for name, counts in self._reference.count(measurements).items():
            for place in np.flatnonzero(counts):
                self._exporter.add(metrics.MAP_BIN, (name, str(place), self._reference.digest), int(counts[place]))

    def _export_zeros(self) -> None:
        """Makes every series appear at 0: Prometheus sees no increase from a missing series to 1."""
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
        return Budget(lambda pictures: OVERHEAD_BATCH + (OVERHEAD_SINGLE - OVERHEAD_BATCH) / pictures)
    return Budget(lambda _pictures: share) if share < 1 else Budget()


@dataclass
class _Timed:
    """Context manager: appends (name, seconds) of a block that does not raise."""

    name: str
    times: deque[tuple[str, float]]
    start: float = field(default=0.0)

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.times.append((self.name, time.perf_counter() - self.start))


def _drain(waiting: deque[T]) -> list[T]:
    """Takes all that waits now; other threads may append meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


def open_monitor(
    config: Config, source: Source, *, scale: Scale | None, directory: Path | str, provenance: Provenance
) -> Monitor:
    """Makes a monitor, not yet started, with the reference of the unpacked archive in `directory`.

    Args:
        config: of the archive, which asks for monitoring.
        source: the model, and how its maps are made.
        directory: the unpacked archive.
        scale: how the model's input is normalised; None: not known.
        provenance: what the archive makes maps with; a reference of another provenance is not used.

    Raises:
        ConfigError: evidence is to be kept, and it is not known where, or nothing here can open that.
    """
    try:
        reference = load(directory, provenance)
        why = "" if reference else f"the archive holds no {FILE}; scripts/reference.py makes one"
    except StaleReference as error:
        reference, why = None, str(error)
        logger.warning("camserve: the drift of the maps cannot be watched: %s", why)
    exporter = Exporter(source.model, source.version)
    keeper = None
    if config.keeping is not None:
        keeper = Keeper(config, replace(source, reference=None if reference is None else reference.digest), reference, exporter)
    return Monitor(config.monitoring or Monitoring(), exporter, scale, reference, why, keeper=keeper)


def export_reference(reference: Reference, exporter: Exporter) -> None:
    """Exports the shares of the reference as gauges, and its bins as counters at 0.

    The class mix is the statistic `class`, whose bins are groups of classes.
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
