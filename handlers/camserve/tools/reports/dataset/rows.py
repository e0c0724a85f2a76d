"""What a row holds: the contract's answer for one picture, or its error, in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camserve.hosts.worker import Measured
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.client.client import CamserveError
from camserve.tools.reports.journal import VERDICTS

Row = dict[str, Any]

_RECTANGLE = pa.list_(pa.float64())
_EXPLANATION = [
    ("target", pa.int64()),
    ("label", pa.string()),
    ("probability", pa.float64()),
    ("heatmap", pa.list_(pa.float32())),
    ("heatmap_shape", pa.list_(pa.int32())),
    ("range", pa.list_(pa.float64())),
    ("region", _RECTANGLE),
    ("warnings", pa.list_(pa.string())),
    ("direction", pa.string()),
    ("inside", pa.struct([("share", pa.float64()), ("area", pa.float64()), ("peak", pa.bool_())])),
    ("contours", pa.string()),
]
_STATISTICS = [("target", pa.int64()), ("reason", pa.string()), *((name, pa.float64()) for name in STATISTICS)]
ABOUT = ("method", "layer", "model", "version", "weights", "scores")
"""Members of an answer that are the same in all rows of a job."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.int32()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("classes", pa.list_(pa.struct([("index", pa.int64()), ("label", pa.string()), ("probability", pa.float64())]))),
        *_EXPLANATION,
        ("further", pa.list_(pa.struct(_EXPLANATION))),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("view", _RECTANGLE),
        ("statistics", pa.struct([*_STATISTICS, ("map", pa.list_(pa.float32())), ("map_shape", pa.list_(pa.int32()))])),
        ("predictions", pa.string()),
        *((name, pa.string()) for name in ABOUT),
        ("threshold", pa.float64()),
    ]
)
"""The columns, by the contract's names. The first explanation is spread over the row, `further` holds those of more targets.

`inside` is what of the map lies inside the area that was asked about, and `contours` JSON, where they were asked for.
`status` is the answer's, or null where the picture could not be read; `heatmap` is row by row, `heatmap_shape` its height and
width; `predictions` is JSON. `statistics` are of the most probable class: what monitoring measures. Their `map` is that class's,
before it is scaled, and only where it cannot be had from the first explanation: `range[0] + heatmap * (range[1] - range[0])`.
"""


def is_final(status: int | None) -> bool:
    """Tell whether a row's status says something of the picture; anything else is asked for again when the job is run again."""
    return status == 200 or status in VERDICTS


def row_of_error(name: str, digest: str | None, error: CamserveError) -> Row:
    """Make the row of a picture that has no answer."""
    return {
        "path": _text(name),
        "sha256": digest,
        "status": error.status,
        "error": _text(error.type),
        "message": _text(error.message),
    }


def row_of_answer(name: str, digest: str, answer: Mapping[str, Any], measured: Measured | None) -> Row:
    """Make the row of an answer, JSON as the contract has it."""
    image = answer["image"] or {}
    first, *further = [_explanation(each) for each in answer["explanations"]] or [{}]
    return {
        "path": _text(name),
        "sha256": digest,
        "status": 200,
        "classes": [{**each, "label": _text(each["label"])} for each in answer["classes"]],
        **first,
        "further": further,
        "width": image.get("width"),
        "height": image.get("height"),
        "view": image.get("view"),
        "statistics": None if measured is None else _statistics(measured, first),
        "predictions": _text(json.dumps(answer["predictions"], ensure_ascii=False, separators=(",", ":"))),
        **{key: _text(answer[key]) for key in ABOUT if key in answer},
        "threshold": answer.get("threshold"),
    }


def _explanation(member: Mapping[str, Any]) -> Row:
    heatmap = np.asarray(member["heatmap"], dtype=np.float32)
    return {
        "target": member["target"],
        "label": _text(member["label"]),
        "probability": member["probability"],
        "heatmap": heatmap.ravel(),
        "heatmap_shape": heatmap.shape,
        "range": member["range"],
        "region": member["region"],
        "warnings": member["warnings"],
        "direction": member.get("direction"),
        "inside": member.get("inside"),
        "contours": json.dumps(member["contours"]) if member.get("contours") else None,
    }


def _statistics(measured: Measured, first: Row) -> Row:
    known = {name: value for name in STATISTICS if np.isfinite(value := measured.values.get(name, np.nan))}
    values: Row = {"target": measured.target, "reason": measured.reason, **known}
    shown = unscale(first.get("heatmap"), first.get("heatmap_shape"), first.get("range"))
    same = shown is not None and first["target"] == measured.target and _is_same(shown, measured.map)
    if not measured.reason and not same:
        values |= {"map": measured.map.ravel(), "map_shape": measured.map.shape}
    return values


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Tell whether two maps differ by rounding alone."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-5, atol=1e-6 * float(np.abs(other).max()))


def unscale(heatmap: Any, shape: Sequence[int] | None, limits: Sequence[float] | None) -> NDArray[np.float32] | None:
    """Return the map `[h, w]` as it was before it was scaled to [0, 1]; None where a row has none, or it is not finite."""
    if heatmap is None or shape is None or limits is None:
        return None
    low, high = (np.float32(limit) for limit in limits)
    scaled = np.asarray(heatmap, dtype=np.float32).reshape(tuple(shape))
    unscaled: NDArray[np.float32] = low + scaled * (high - low)
    return unscaled


def map_of(row: Row) -> NDArray[np.float32] | None:
    """Return the map `[h, w]` that a row's statistics are of; None where it says nothing, or nothing was measured."""
    measured = row["statistics"]
    if measured is None or measured["reason"]:
        return None
    if measured["map"] is not None:
        whole: NDArray[np.float32] = np.asarray(measured["map"], dtype=np.float32).reshape(tuple(measured["map_shape"]))
        return whole
    return unscale(row["heatmap"], row["heatmap_shape"], row["range"])


def answer_of(row: Row) -> dict[str, Any]:
    """Return the answer, as the contract has it, that a row was made of.

    Raises:
        CamserveError: it was an error.
    """
    if row["status"] != 200:
        raise CamserveError(row["status"], row["error"], row["message"])
    spread = [] if row["target"] is None else [row]
    return {
        "predictions": json.loads(row["predictions"]),
        "classes": row["classes"],
        "explanations": [_explanation_of(each) for each in (*spread, *row["further"])],
        "image": None if row["width"] is None else {"width": row["width"], "height": row["height"], "view": row["view"]},
        **{name: row[name] for name in ABOUT if row[name] is not None},
        **({} if row["threshold"] is None else {"threshold": row["threshold"]}),
    }


def _explanation_of(part: Row) -> dict[str, Any]:
    names = ("target", "label", "probability", "range", "region", "warnings")
    heatmap = np.asarray(part["heatmap"], dtype=np.float32).reshape(tuple(part["heatmap_shape"]))
    told = {name: part[name] for name in ("direction", "inside") if part.get(name) is not None}
    if part.get("contours") is not None:
        told["contours"] = json.loads(part["contours"])
    return {**{name: part[name] for name in names}, "heatmap": heatmap, **told}


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Put rows into a table."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def _text(value: object) -> str:
    """Return text that UTF-8 can hold: a file's name need be no Unicode, and JSON can escape half a character."""
    return str(value).encode("utf-8", "backslashreplace").decode()
