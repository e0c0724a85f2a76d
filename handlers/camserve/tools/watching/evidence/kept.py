"""What was kept in a time: read once, and light enough to be held; pictures are read when they are shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.explain.degenerate import find_degenerate
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import read_record
from camserve.monitoring.evidence.records import EvidenceError, Reason, Record
from camserve.monitoring.evidence.stores import Store
from camserve.monitoring.reference import CLASS
from camserve.monitoring.statistics import STATISTICS

NAMES = (*STATISTICS, CLASS)
"""The statistics in the order in which a card lists its values and bins."""
HELD = 20_000
"""Records that are held; the oldest read leave."""
READERS = 8
"""Records that are read at once: an object store takes its time for each."""
CELLS = 32
"""Rows and columns of a map in a page; larger ones are averaged."""


@dataclass(frozen=True)
class Seen:
    """One record as a page needs it.

    Attributes:
        weight: how many watched predictions it stands for; 0 where it is not of the sample.
        group: of its class in the reference.
        bins: by statistic, and the class mix.
        card: what the page is told, in JSON's types, but not the picture.
    """

    entry: Entry
    reference: str | None
    version: str
    weight: float
    group: int | None
    bins: dict[str, int]
    card: dict[str, Any]


class Shelf:
    """Reads records of a store, each once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, entries: Sequence[Entry]) -> list[Seen]:
        """Reads records; those that are damaged, or gone meanwhile, are left out."""
        with self._lock:
            held = {entry.path: self._seen[entry.path] for entry in entries if entry.path in self._seen}
        new = [entry for entry in entries if entry.path not in held]
        with ThreadPoolExecutor(READERS) as threads:
            read = {each.entry.path: each for each in threads.map(self._read, new) if each is not None}
        with self._lock:
            self._seen.update(read)
            while len(self._seen) > HELD:
                self._seen.popitem(last=False)
        held |= read
        return [held[entry.path] for entry in entries if entry.path in held]

    def _read(self, entry: Entry) -> Seen | None:
        try:
            return _see(entry, read_record(self.store, entry))
        except EvidenceError:
            return None


def _see(entry: Entry, record: Record) -> Seen:
    weight = sum(float(reason.about.get("weight", 1)) for reason in record.reasons if reason.kind == "sample")
    bins = dict(record.bins)
    if record.group is not None:
        bins[CLASS] = record.group
    source = record.source
    return Seen(entry, source.reference, source.version, weight, record.group, bins, describe_record(record, weight))


def describe_record(record: Record, weight: float) -> dict[str, Any]:
    """Writes what a page is told of a record, but not its picture."""
    width, height = _size_of(record)
    first = record.classes[0]
    return {
        **{"id": record.id, "name": record.name, "model": record.source.model, "scores": record.source.scores},
        "time": record.time.timestamp(),
        "request": record.request_id or record.answer_id,
        **{"label": first.label, "target": first.index, "confidence": shorten(first.probability)},
        "classes": ", ".join(f"{each.label} {each.probability:.4g}" for each in record.classes),
        **{"sample": weight > 0, "weight": weight},
        "unusual": [describe_reason(reason) for reason in record.reasons if reason.kind != "sample"],
        "values": [*(shorten(record.statistics.get(name)) for name in STATISTICS), None],
        "bins": [*(record.bins.get(name) for name in STATISTICS), record.group],
        "map": pack_map(record.raw_map),
        "view": scale_view(record.view, record.image, (width, height)),
        **{"width": width, "height": height, "seen": record.picture.kind != "none"},
    }


def _size_of(record: Record) -> tuple[int, int]:
    """Returns width and height of what is shown: of the kept picture, else of the original, else the map's proportions."""
    if record.picture.kind != "none":
        return record.picture.size
    if record.image is not None:
        return record.image
    rows, columns = record.raw_map.shape
    return columns, rows


def scale_view(view: Sequence[float] | None, image: tuple[int, int] | None, shown: tuple[int, int]) -> list[float] | None:
    """Brings the rectangle that the model saw from the original's pixels to those of what is shown."""
    if view is None or image is None:
        return None
    across, down = shown[0] / image[0], shown[1] / image[1]
    left, top, right, bottom = view
    return [round(each, 3) for each in (left * across, top * down, right * across, bottom * down)]


def shorten(value: float | None) -> float | None:
    """Rounds to five digits, which is more than a page shows."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.5g}")


def pack_map(raw: NDArray[np.float32]) -> dict[str, Any] | None:
    """Packs a raw map `[h, w]` as the heatmap that it is drawn as, a byte a cell in hexadecimal; None where it says nothing."""
    if find_degenerate(raw[None])[0]:
        return None
    values = _average(_average(raw.astype(np.float64), 0), 1)
    low, high = values.min(), values.max()
    if high <= low:
        return None
    cells = np.rint((values - low) / (high - low) * 255).astype(np.uint8)
    return {"rows": cells.shape[0], "columns": cells.shape[1], "data": cells.tobytes().hex()}


def _average(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Averages neighbours along an axis so that at most `CELLS` are left, each by its share of the new cell."""
    size = values.shape[axis]
    if size <= CELLS:
        return values
    edges = np.linspace(0, size, CELLS + 1)
    places = np.arange(size)
    share = np.clip(np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places), 0, None)
    share /= share.sum(1, keepdims=True)
    mean: NDArray[np.float64] = np.moveaxis(np.tensordot(share, values, (1, axis)), 0, axis)
    return mean


def describe_reason(reason: Reason) -> str:
    """Says why a record was kept, in the words of whoever looks at it."""
    about = reason.about
    if reason.kind == "rare":
        sides = {"low": "lower than usual", "high": "higher than usual"}
        return f"{about['statistic']} {sides.get(str(about.get('side')), 'rare for its class')}"
    if reason.kind == "degenerate":
        return f"the map is {about.get('warning', '')}".replace("not_finite", "not finite")
    if reason.kind == "unseen":
        return "a class that the reference never saw"
    if reason.kind == "unsure":
        return f"unsure, below {about.get('below', 0):.3g}"
    return reason.kind
