"""Everything that was kept of a model in a time, as one Parquet file: a row for each record, its marks in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries, read_records
from camserve.monitoring.evidence.records import Record
from camserve.monitoring.evidence.stores import Store
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.watching.evidence.marks import Mark, read_marks
from camserve.tools.watching.evidence.periods import Period

CHUNK = 200
"""Rows that are in memory at once."""

_TIME = pa.timestamp("ms", "UTC")
_STRINGS = ("model", "version", "weights", "method", "layer", "scores", "reference")
SCHEMA = pa.schema(
    [
        *(("id", pa.string()), ("time", _TIME), ("request_id", pa.string()), ("answer_id", pa.string())),
        *(("instance", pa.int32()), ("explain", pa.bool_())),
        *((name, pa.string()) for name in _STRINGS),
        *(("reasons", pa.list_(pa.string())), ("weight", pa.float64())),
        *(("target", pa.int64()), ("label", pa.string()), ("probability", pa.float64()), ("group", pa.int32())),
        ("classes", pa.list_(pa.struct([("index", pa.int64()), ("label", pa.string()), ("probability", pa.float64())]))),
        ("statistics", pa.struct([(name, pa.float64()) for name in STATISTICS])),
        ("bins", pa.struct([(name, pa.int32()) for name in STATISTICS])),
        *(("map", pa.list_(pa.float32())), ("map_shape", pa.list_(pa.int32()))),
        *(("width", pa.int32()), ("height", pa.int32()), ("view", pa.list_(pa.float64()))),
        *(("picture", pa.binary()), ("file", pa.binary()), ("media_type", pa.string())),
        *(("mark", pa.string()), ("note", pa.string()), ("who", pa.string())),
        (
            "marks",
            pa.list_(pa.struct([("verdict", pa.string()), ("note", pa.string()), ("who", pa.string()), ("time", _TIME)])),
        ),
    ]
)
"""`reasons` are the names' words (`sample`, `rare.centroid_x`); `weight` is how many predictions one of the sample stands for;
`map` is raw, row by row. `mark`, `note` and `who` are the last mark's; `marks` are all, oldest first."""


def write_parquet(store: Store, folder: str, period: Period, file: Path) -> int:
    """Writes a model's records of a time; the file gets its name when it is whole. Returns how many rows it has."""
    entries = list_entries(store, folder, period.since, period.until)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    count = 0
    try:
        with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
            for rows in _chunks(store, entries):
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                count += len(rows)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _chunks(store: Store, entries: Sequence[Entry]) -> Iterator[list[dict[str, Any]]]:
    waiting = iter(entries)
    while some := list(islice(waiting, CHUNK)):
        marks = read_marks(store, some)
        yield [_row(record, marks.get(record.name, [])) for record in read_records(store, some)]


def _row(record: Record, marks: Sequence[Mark]) -> dict[str, Any]:
    first = record.classes[0]
    source = {name: getattr(record.source, name) for name in _STRINGS}
    last = marks[-1] if marks else None
    picture = record.picture
    return {
        **{"id": record.id, "time": record.time, "request_id": record.request_id, "answer_id": record.answer_id},
        **{"instance": record.instance, "explain": record.explain, **source},
        "reasons": [reason.tag for reason in record.reasons],
        "weight": sum(float(reason.about.get("weight", 1)) for reason in record.reasons if reason.kind == "sample"),
        **{"target": first.index, "label": first.label, "probability": first.probability, "group": record.group},
        "classes": [{"index": each.index, "label": each.label, "probability": each.probability} for each in record.classes],
        **{"statistics": dict(record.statistics), "bins": {name: record.bins.get(name) for name in STATISTICS}},
        **{"map": record.raw_map.astype(np.float32).ravel().tolist(), "map_shape": list(record.raw_map.shape)},
        **{"width": record.image and record.image[0], "height": record.image and record.image[1]},
        "view": record.view and list(record.view),
        **{"picture": picture.jpeg or None, "file": picture.file or None, "media_type": picture.media_type or None},
        **{"mark": last and last.verdict, "note": last and last.note, "who": last and last.who},
        "marks": [{"verdict": each.verdict, "note": each.note, "who": each.who, "time": each.time} for each in marks],
    }
