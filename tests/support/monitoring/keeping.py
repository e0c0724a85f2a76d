"""What tests of evidence share: predictions as they come, a keeper that writes them, and stores that misbehave."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.monitoring.monitors import Output, look
from tests.support.processes.waiting import HANG

from camserve.core.config import Config
from camserve.core.config.watching import Evidence
from camserve.core.geometry import Rect
from camserve.core.messages import Encoded, ImageInfo, Score
from camserve.explain.observer import Observation, Origin
from camserve.monitoring.evidence import writing
from camserve.monitoring.evidence.keeper import Keeper
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries
from camserve.monitoring.evidence.records import Picture, Reason, Record, Source
from camserve.monitoring.evidence.stores import Folder
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.monitor import Monitor
from camserve.monitoring.reference import Reference
from camserve.monitoring.statistics import STATISTICS, Scale

SOURCE = Source("m", "1.0", "sha256:0", "gradcam++", "features", "softmax", None)
SIZE = (160, 120)
VIEW = Rect(20, 0, 140, 120)
NOTHING = ((0, 0), (0, 0))


@cache
def picture(width: int = SIZE[0], height: int = SIZE[1], kind: str = "JPEG") -> bytes:
    """A picture's file: red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def came(observation: Observation, request_id: str = "", image: Any = None, at: float | None = None) -> Observation:
    """A prediction with what it is kept with."""
    (target, confidence), *_ = observation.scores
    classes = (Score(target, f"class {target}", confidence), Score(target + 1, f"class {target + 1}", 0.2))
    image = Encoded(picture()) if image is None else image
    info = ImageInfo(*SIZE, VIEW) if isinstance(image, Encoded) else None
    moment = time.time() if at is None else at
    return replace(observation, origin=Origin(moment, image, info, classes, request_id=request_id, answer_id=request_id))


def silent(target: int = 0, **about: Any) -> Observation:
    """A prediction whose map says nothing, which is a reason to keep it."""
    return came(look(NOTHING, target), **about)


def record(at: datetime, target: int = 0, reasons: tuple[Reason, ...] = (Reason("unseen"),), **changes: Any) -> Record:
    """A record."""
    kept = Record(
        *("0123456789abcdef", at.replace(microsecond=at.microsecond // 1000 * 1000), "asked-1", "answered-1", 0, False),
        *(SOURCE, reasons, (Score(target, "tabby", 0.6), Score(target + 1, "tiger", 0.1)), 3),
        {**dict.fromkeys(STATISTICS, 0.25), "overlap": None},
        {"entropy": 2},
        np.array([[0, 1], [2, 3.5]], dtype=np.float32),
        *(SIZE, (20.0, 0.0, 140.0, 120.0), Picture("thumbnail", "", b"jpeg", SIZE)),
    )
    return replace(kept, **changes)


def write(store: Any, kept: Record) -> Entry:
    """Writes a record as a worker does; returns it as it is listed."""
    data = kept.to_json()
    path = f"{kept.folder}/{kept.name}.json"
    store.write(path, data)
    entry = Entry.of(path, len(data))
    assert entry is not None
    return entry


class Kept:
    """A monitor that keeps evidence, its output, and its store. Its end waits for `patience` seconds for what is still to be written."""

    patience = HANG

    def __init__(self, place: Path | str, found: Reference | None = None, share: float = 1.0, **settings: Any) -> None:
        self.output = Output()
        config = Config.from_mapping({"evidence": {"to": str(place), "sample": 0, **settings}})
        exporter = Exporter("m", "1.0", self.output.blocks.append)
        self.keeper = Keeper(config, replace(SOURCE, reference=None if found is None else found.digest), found, exporter, share)
        scale = Scale((0,) * 3, (1,) * 3)
        self.monitor = Monitor(replace_interval(config), exporter, scale, found, keeper=self.keeper)
        self.store: Any = self.keeper._writer._store
        self.monitor.start()

    def take(self, *observations: Observation) -> None:
        """Measures predictions, and hands on what is to be kept."""
        for each in observations:
            self.monitor.observe(each)
        self.monitor._digest()

    def close(self) -> None:
        """Ends the worker."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "PATIENCE", self.patience)
            self.monitor.close()

    def entries(self) -> list[Entry]:
        """What is kept, once the worker has ended."""
        self.close()
        return list_entries(self.store)

    def told(self, name: str, reason: str) -> float:
        """A counter's value, once the worker has ended."""
        self.close()
        return self.output.totals().get((f"camserve_evidence_{name}_total", reason), 0.0)


def replace_interval(config: Config) -> Any:
    """Its monitoring, which exports only when it is told to."""
    assert config.monitoring is not None
    return replace(config.monitoring, interval=3600.0)


@contextlib.contextmanager
def keeping(place: Path, found: Reference | None = None, **settings: Any) -> Iterator[Kept]:
    """A monitor that keeps evidence."""
    kept = Kept(place, found, **settings)
    try:
        yield kept
    finally:
        kept.close()


class Broken(Folder):
    """A folder that fails while it is told to, or hangs until it is let go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fault: OSError | None = None
        self.free = threading.Event()
        self.free.set()
        self.tried = self.done = 0

    def write(self, path: str, data: bytes) -> None:
        """Hangs, fails, or writes."""
        self.tried += 1
        self.free.wait(HANG)
        if self.fault is not None:
            raise self.fault
        super().write(path, data)
        self.done += 1


def at(*parts: int) -> datetime:
    """A moment of 2026, UTC."""
    return datetime(2026, *parts, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]


def settings(**given: Any) -> Evidence:
    """Settings of evidence."""
    return Evidence(**given)
