"""Writes evidence in a thread of its own, and keeps a store within its bounds. Whatever a store does costs evidence alone."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from camserve.core.config.watching import Evidence
from camserve.core.text import in_one_line
from camserve.explain.sampling import MAX_SAVINGS, Budget
from camserve.monitoring import metrics
from camserve.monitoring.evidence.names import ENDING, Entry, name_folder, name_reference
from camserve.monitoring.evidence.quotas import HOUR, SAMPLE, Bounds, Quotas, Reservoir, plan_sample
from camserve.monitoring.evidence.reading import list_day
from camserve.monitoring.evidence.records import Reason, Record
from camserve.monitoring.evidence.stores import Store, hide_secrets
from camserve.monitoring.exporter import Exporter

logger = logging.getLogger(__name__)

DROPPED = ("quota", "memory", "slow", "budget", "failed")
"""Why what was worth keeping is not kept: there were enough of its kind; pictures that wait fill what they may; too many wait for
the store; keeping would take more time than it may; the store refuses it, or has just refused another."""

QUEUED = 64
"""Predictions that wait to be written, at most."""
SHARE = 0.01
"""Of one core's time, the share that the thread may take."""
FIRST_SAMPLE, SHORTEST = 5.0, 60.0
"""Seconds to the first drawing of the sample, and between two at least: each looks into the store."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds in which nothing is tried after a store has failed: doubled each time."""
PATIENCE = 2.0
"""Seconds that the end of a worker waits for what is still to be written."""


@dataclass
class Candidate:
    """A prediction that is worth keeping, or was drawn.

    Attributes:
        make: makes its record, given its reasons.
        let_go: is called once nobody holds it any more; how many do is `holders`.
        path: where it is written already.
        settled: it is written, or there was no room for it.
    """

    time: float
    target: int
    reasons: tuple[Reason, ...]
    make: Callable[[tuple[Reason, ...]], Record]
    let_go: Callable[[], None]
    holders: int = 0
    path: str = ""
    settled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """Its reasons as names tell them."""
        return tuple(each.tag for each in self.reasons)

    def hold(self, change: int) -> None:
        """Take note that somebody more holds it (1), or lets go of it (-1)."""
        with self.lock:
            self.holders += change
            gone = self.holders == 0
        if gone:
            self.let_go()


class Writer:
    """The thread that writes. Its queue is bounded, and nobody waits for it.

    Args:
        model: its evidence is counted and bounded by itself.
        reference: what records are compared with, and its digest: written once, so that a store is enough to look at them.
        share: of one core's time that it may take; 1: as long as it takes.
    """

    def __init__(
        self,
        store: Store,
        settings: Evidence,
        model: str,
        exporter: Exporter,
        *,
        reference: tuple[str, str] | None = None,
        share: float = SHARE,
    ) -> None:
        self._store = store
        self._folder = name_folder(model)
        self._exporter = exporter
        self._reference = reference
        self._quotas = Quotas(settings)
        self._bounds = Bounds(store, settings, self._folder)
        self._budget = Budget(lambda _: share) if share < 1 else Budget()
        self._budget.add(1, MAX_SAVINGS / share, 0.0)  # what it begins with
        self._turns = threading.Condition()
        self._queue: deque[Candidate] = deque()
        size, self._period = plan_sample(settings.sample, SHORTEST)
        self._size = size if settings.sample else 0
        self._reservoir: Reservoir[Candidate] = Reservoir(size)
        self._due = time.time() + min(FIRST_SAMPLE, self._period)
        self._pause, self._paused_until = 0.0, 0.0
        self._closed = False
        self._ended = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="camserve evidence", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, candidate: Candidate) -> None:
        """Take an unusual prediction, or drop and count it. Returns at once."""
        now = time.time()
        with self._turns:
            cause = self._find_cause(candidate, now)
            if not cause:
                self._quotas.count(candidate.tags, candidate.target, candidate.time)
                candidate.hold(1)
                self._queue.append(candidate)
                self._turns.notify()
        if cause:
            self.drop(cause)

    def draw(self, candidate: Candidate) -> None:
        """Let a prediction take part in the sample. Returns at once."""
        if self._size:
            candidate.hold(1)
            with self._turns:
                dropped = self._reservoir.add(candidate)
            if dropped is not None:
                dropped.hold(-1)

    def drop(self, cause: str, count: int = 1) -> None:
        """Count what is not kept."""
        self._exporter.add(metrics.EVIDENCE_DROPPED, (cause,), count)

    def close(self) -> None:
        """End the thread, once it has written what waits, if that does not take long."""
        with self._turns:
            self._closed = True
            self._turns.notify()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        self.drop("slow", len(self._queue))

    def _find_cause(self, candidate: Candidate, now: float) -> str:
        """Say why a prediction is not kept; "" where it is."""
        if not self._quotas.has_room(candidate.tags, candidate.target, now):
            return "quota"
        if now < self._paused_until:
            return "failed"
        if not self._budget.allows():
            return "budget"
        return "slow" if len(self._queue) >= QUEUED or self._closed else ""

    def _run(self) -> None:
        while not self._closed or (self._queue and not self._pause):
            with self._turns:
                now = time.time()
                if now < self._paused_until:
                    self._turns.wait(self._paused_until - now)
                elif not self._queue and not self._closed:
                    self._turns.wait(max(0.05, min(self._due, self._bounds.due) - now))
            if time.time() >= self._paused_until:
                self.take_turn()

    def take_turn(self) -> None:
        """Write what waits, and what was drawn, and see to the bounds; a store that fails is left in peace for a while."""
        now, spent = time.time(), time.thread_time()
        with self._turns:
            waiting = [self._queue.popleft() for _ in range(len(self._queue))]
            drawn = now >= self._due and bool(self._reservoir) and self._budget.allows()
            if now >= self._due:
                self._due = now + (self._period if self._budget.allows() else FIRST_SAMPLE)
        try:
            if waiting or drawn:
                with self._store.lock():
                    self._learn(now)
                    self._write_reference()
                    self._write(waiting, now)
                    if drawn:
                        self._draw(now)
            elif self._bounds.due <= now:
                self._bounds.look(now)
            self._exporter.set(metrics.EVIDENCE_BYTES, (), self._bounds.size)
            self._exporter.set(metrics.EVIDENCE_RECORDS, (), self._bounds.count)
        except Exception as error:  # noqa: BLE001 whatever a store raises costs evidence, and nothing else
            self._fail(error)
        else:
            if self._pause:
                logger.info("camserve: evidence is kept again")
            self._pause = 0.0
        finally:
            self.drop("failed", sum(not each.settled for each in waiting))
            for candidate in waiting:
                candidate.hold(-1)
            ended = time.monotonic()
            self._budget.add(1, ended - self._ended, time.thread_time() - spent)
            self._ended = ended

    def _learn(self, now: float) -> None:
        """Count what the store holds of the last hour: other workers write too, and this one may have been killed."""
        if self._bounds.wants_look(now):
            self._bounds.look(now)
            entries = self._bounds.entries
        else:
            days = {f"{datetime.fromtimestamp(each, timezone.utc):%Y-%m-%d}" for each in (now - HOUR, now)}
            entries = [entry for day in days for entry, _ in list_day(self._store, f"{self._folder}/{day}")]
        with self._turns:
            self._quotas.learn(((entry.time.timestamp(), entry.reasons, entry.target) for entry in entries), now)

    def _write_reference(self) -> None:
        if self._reference is not None:
            text, digest = self._reference
            name = name_reference(digest)
            if name not in dict(self._store.list_files(self._folder)):
                self._store.write(f"{self._folder}/{name}", text.encode())
            self._reference = None

    def _write(self, waiting: list[Candidate], now: float) -> None:
        """Write what waits, as far as there still is room for it."""
        for candidate in waiting:
            with self._turns:
                fits = self._quotas.has_room(candidate.tags, candidate.target, now)
            if not fits:
                self.drop("quota")
            else:
                candidate.path = self._put(candidate, candidate.reasons)
            candidate.settled = True

    def _draw(self, now: float) -> None:
        """Write what was drawn, unless other workers have drawn enough: then those that come join those that came.

        One that was unusual too is written already: one record in its place says both.
        """
        with self._turns:
            free = self._size - self._quotas.count_samples(now - 0.9 * self._period)
            chosen, others, weight = self._reservoir.take(free)
        try:
            for candidate in chosen:
                written = candidate.path
                path = self._put(candidate, (Reason(SAMPLE, {"weight": weight}), *candidate.reasons))
                if written and path:
                    self._bounds.remove(written)
        finally:
            for candidate in (*chosen, *others):
                candidate.hold(-1)

    def _put(self, candidate: Candidate, reasons: tuple[Reason, ...]) -> str:
        """Write a record; return its path, or "" where it can be none."""
        try:
            record = candidate.make(reasons)
            data = record.to_json()
        except Exception:
            logger.exception("a prediction cannot be kept")
            self.drop("failed")
            return ""
        if not self._bounds.make_room(len(data)):
            self.drop("failed")
            return ""
        path = f"{record.folder}/{record.name}{ENDING}"
        self._store.write(path, data)
        entry = Entry.of(path, len(data))
        if entry is None:
            raise ValueError(path)
        self._bounds.add(entry)
        with self._turns:
            self._quotas.count(entry.reasons, entry.target, candidate.time)
        for kind in {each.kind for each in reasons}:
            self._exporter.add(metrics.EVIDENCE_KEPT, (kind,))
        return path

    def _fail(self, error: Exception) -> None:
        if not self._pause:
            logger.warning("camserve: evidence cannot be kept in %s: %s", hide_secrets(self._store.to), in_one_line(error))
        self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
        self._paused_until = time.time() + self._pause
