"""Chooses what is kept of the watched predictions, and hands it to the thread that writes. It runs in the monitor's thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import Any

from camserve.core.config import Config
from camserve.core.config.switch import KEEP_AT
from camserve.core.config.watching import Evidence
from camserve.core.errors import ConfigError
from camserve.core.messages import Encoded
from camserve.explain.observer import Observation, Origin
from camserve.monitoring import metrics
from camserve.monitoring.evidence.judging import Judge
from camserve.monitoring.evidence.names import KINDS, make_id
from camserve.monitoring.evidence.pictures import keep_picture
from camserve.monitoring.evidence.records import Reason, Record, Source
from camserve.monitoring.evidence.stores import StoreError, hide_secrets, open_store
from camserve.monitoring.evidence.writing import DROPPED, SHARE, Candidate, Writer
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import Reference

HELD = 64 * 2**20
"""Bytes of pictures' files that wait to be judged, drawn or written, at most."""


class Keeper:
    """Keeps a sample of the watched predictions, and unusual ones.

    Args:
        config: of the archive; it asks for evidence.
        source: which model made the maps, and how.
        reference: what is usual; None: only maps and confidence can be unusual.
        exporter: counts what is kept, and what is not.
        share: of one core's time that writing may take; 1: as long as it takes.

    Raises:
        ConfigError: it is not known where to keep it, or nothing that is installed can open that.
    """

    def __init__(
        self, config: Config, source: Source, reference: Reference | None, exporter: Exporter, share: float = SHARE
    ) -> None:
        settings = config.keeping or Evidence()
        if settings.to is None:
            raise ConfigError(
                "explain: evidence: it is not known where to keep it: give `to` (an absolute folder, or a URL), or say it in the "
                f"server's configuration (camserve_evidence_to), or in the variable {KEEP_AT}"
            )
        try:
            store = open_store(settings.to)
        except StoreError as error:
            raise ConfigError(f"explain: evidence: {error}") from error
        self._settings = settings
        self._config = config
        self._source = source
        self._judge = Judge(reference, settings.confidence, source.scores)
        text = None if reference is None else (reference.to_json(), reference.digest)
        self._writer = Writer(store, settings, source.model, exporter, reference=text, share=share)
        self._lock = threading.Lock()
        self._held = 0
        for kind in KINDS:
            exporter.add(metrics.EVIDENCE_KEPT, (kind,), 0)
        for cause in DROPPED:
            exporter.add(metrics.EVIDENCE_DROPPED, (cause,), 0)

    def describe(self) -> dict[str, Any]:
        """Describe what is kept, and where, for the model's metadata."""
        return {"kept": True, **vars(self._settings), "to": hide_secrets(self._settings.to or "")}

    def start(self) -> None:
        """Start the thread that writes."""
        self._writer.start()

    def close(self) -> None:
        """Write what waits, if that does not take long, and end."""
        self._writer.close()

    @property
    def pressed(self) -> bool:
        """Whether pictures wait that should be judged soon."""
        return self._held > HELD // 2

    def admit(self, observation: Observation) -> Observation:
        """Count the picture as held; where there is no room for it, return the observation without its origin."""
        size = _size_of(observation.origin)
        with self._lock:
            fits = self._held + size <= HELD
            self._held += size if fits else 0
        if fits:
            return observation
        self._writer.drop("memory")
        return replace(observation, origin=None)

    def forget(self, observations: Sequence[Observation]) -> None:
        """Let go of pictures that could not be measured."""
        for observation in observations:
            self._release(_size_of(observation.origin))

    def consider(self, observations: Sequence[Observation], measurements: Measurements) -> None:
        """Hand on those of M predictions that are unusual, and let each take part in the sample."""
        try:
            groups, judged = self._judge.find_groups(measurements), self._judge.judge(measurements)
        except Exception:
            self.forget(observations)
            raise
        for place, reasons in enumerate(judged):
            observation = observations[place]
            origin = observation.origin
            if origin is None:
                continue
            group = None if groups is None else int(groups[place])
            make = partial(self._make, _Kept(observation, origin, measurements, place, group))
            release = partial(self._release, _size_of(origin))
            candidate = Candidate(origin.time, measurements.targets[place], tuple(reasons), make, release)
            candidate.hold(1)
            if reasons:
                self._writer.offer(candidate)
            self._writer.draw(candidate)
            candidate.hold(-1)

    def _release(self, size: int) -> None:
        with self._lock:
            self._held -= size

    def _make(self, kept: _Kept, reasons: tuple[Reason, ...]) -> Record:
        """Make a record, with its picture; called by the thread that writes."""
        origin, info = kept.origin, kept.origin.info
        known = (info.width, info.height) if info else None
        picture, size = keep_picture(origin.image, known, self._config, self._settings.picture)
        return Record(
            id=kept.id,
            time=datetime.fromtimestamp(origin.time, timezone.utc),
            request_id=origin.request_id,
            answer_id=origin.answer_id,
            instance=origin.instance,
            explain=origin.explain,
            source=self._source,
            reasons=reasons,
            classes=origin.classes,
            group=kept.group,
            statistics=kept.statistics,
            bins=self._judge.find_bins(kept.statistics, kept.group),
            raw_map=kept.observation.maps[0],
            image=size,
            view=tuple(info.view.rounded()) if info and info.view else None,
            picture=picture,
        )


@dataclass(frozen=True)
class _Kept:
    """What a record is made of, should it be."""

    observation: Observation
    origin: Origin
    measurements: Measurements
    place: int
    group: int | None

    @cached_property
    def id(self) -> str:
        """The record's, however often it is made."""
        return make_id(self.origin.request_id)

    @property
    def statistics(self) -> dict[str, float | None]:
        """Its own of all measurements."""
        return {name: _finite(several[self.place]) for name, several in self.measurements.values.items()}


def _size_of(origin: Origin | None) -> int:
    return len(origin.image.data) if origin is not None and isinstance(origin.image, Encoded) else 0


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
