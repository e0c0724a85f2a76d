"""A few of the pictures that a reference was made of, with their maps: what is normal in each bin, for each class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from camserve.core.messages import Call, Encoded, Score
from camserve.monitoring.evidence.names import make_id
from camserve.monitoring.evidence.pictures import keep_picture
from camserve.monitoring.evidence.records import EvidenceError, Picture, Record, Source
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS

if TYPE_CHECKING:
    from camserve.pipeline.model import Model

FORMAT = 1
MOST = 300
"""Examples of one reference; each takes about 15 kB of the archive."""
LOOKED_AT = 3000
"""Pictures that examples are chosen of."""


def choose_examples(measurements: Measurements, reference: Reference, each: int, most: int = MOST) -> list[int]:
    """Chooses pictures so that every bin of every statistic has up to `each` of every group of classes.

    Returns:
        Their places among the measured, at most `most`; where more would be needed, those that fill more bins come first.
    """
    groups = [reference.group(target) for target in measurements.targets[:LOOKED_AT]]
    bins = {
        name: np.where(np.isnan(values), -1, reference.assign_bins(name, np.nan_to_num(values)))
        for name, values in measurements.values.items()
    }
    cells = [
        {(name, int(bins[name][place]), group) for name in bins if bins[name][place] >= 0}
        for place, group in enumerate(groups)
        if group != UNSEEN
    ]
    places = [place for place, group in enumerate(groups) if group != UNSEEN]
    had: Counter[tuple[str, int, int]] = Counter()
    chosen: list[int] = []
    while len(chosen) < most:
        gains = [sum(had[cell] < each for cell in some) for some in cells]
        best = int(np.argmax(gains)) if gains else 0
        if not gains or gains[best] == 0:
            break
        had.update(cells[best])
        chosen.append(places[best])
        cells[best] = set()
    return chosen


def make_examples(
    model: Model, paths: Sequence[Path], measurements: Measurements, reference: Reference, chosen: Sequence[int]
) -> str:
    """Explains the chosen pictures, and writes what `read_examples` reads.

    Args:
        paths: the measured pictures, in the order of `measurements`.
        chosen: places of them.
    """
    records = []
    made = reference.provenance
    headers = {"x-explain-method": made.method, "x-explain-layer": made.layer}
    headers |= {"x-explain-check": "false"} if model.served.config.checks else {}  # records hold none
    for place in chosen:
        try:
            body = paths[place].read_bytes()
        except OSError:
            continue  # it was read a moment ago
        reply = model.run([Call(True, headers, {"body": body})])[0]
        answer = json.loads(reply.body) if reply.status == 200 else {"explanations": []}
        if answer["explanations"]:
            record = _make(model, answer, _draw(model, body), (measurements, place), reference)
            records.append(json.loads(replace(record, request_id=paths[place].name).to_json()))
    return json.dumps({"format": FORMAT, "reference": reference.digest, "examples": records}, separators=(",", ":"))


def _make(
    model: Model, answer: Mapping[str, Any], picture: Picture, measured: tuple[Measurements, int], reference: Reference
) -> Record:
    measurements, place = measured
    info, made = model.served.model, reference.provenance
    explained = answer["explanations"][0]
    low, high = explained["range"] or (0.0, 0.0)
    image = answer.get("image")
    size = (int(image["width"]), int(image["height"])) if image else None
    target = measurements.targets[place]
    values = {name: float(measurements.values[name][place]) for name in STATISTICS}
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    return Record(
        *(make_id(""), datetime.now(timezone.utc), "", "", 0, True),
        Source(info.name, info.version, info.weights, made.method, made.layer, answer.get("scores", "softmax"), reference.digest),
        (),
        tuple(Score(each["index"], each["label"], each["probability"]) for each in answer["classes"]),
        reference.group(target),
        {name: known.get(name) for name in STATISTICS},
        {name: int(reference.assign_bins(name, np.array([value]))[0]) for name, value in known.items()},
        (np.array(explained["heatmap"], dtype=np.float64) * (high - low) + low).astype(np.float32),
        size,
        tuple(image["view"]) if image and image["view"] else None,
        picture,
    )


def _draw(model: Model, body: bytes) -> Picture:
    if not model.served.config.takes_pictures:
        return Picture("none", "tensor")
    return keep_picture(Encoded(body), None, model.served.config, "thumbnail")[0]


def read_examples(text: str, digest: str) -> list[Record]:
    """Reads the examples of a reference; none where they are another's, or cannot be read."""
    try:
        values = json.loads(text)
        if values["format"] != FORMAT or values["reference"] != digest:
            return []
        return [Record.read(json.dumps(each).encode()) for each in values["examples"]]
    except (ValueError, KeyError, TypeError, EvidenceError):
        return []
