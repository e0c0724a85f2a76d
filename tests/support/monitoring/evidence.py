"""Evidence as a worker keeps it, made here: pictures of a few classes, each looked at in a place of its own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from camserve.core.messages import Score
from camserve.explain.observer import Observation
from camserve.monitoring.evidence.names import make_id, name_reference
from camserve.monitoring.evidence.records import Picture, Reason, Record, Source
from camserve.monitoring.evidence.stores import open_store
from camserve.monitoring.measure import Measurements, measure
from camserve.monitoring.reference import Provenance, Reference
from camserve.monitoring.statistics import STATISTICS, Scale
from camserve.tools.watching.baseline import build_reference

LABELS = ("tabby", "tiger cat", "espresso", "<img src=x onerror=alert(7)>")
PLACES = ((0.3, 0.5), (0.45, 0.4), (0.6, 0.6), (0.7, 0.3))
"""Where each class's maps have their centre."""
CELLS = 7
SIZE = (96, 64)


STOPPED: datetime | None = None
"""The time for as long as it is stopped."""


def now() -> datetime:
    """The time, in whole seconds."""
    return STOPPED or datetime.now(timezone.utc).replace(microsecond=0)


def draw_map(x: float, y: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A map with a bump there."""
    centres = (np.arange(CELLS) + 0.5) / CELLS
    bump = np.exp(-((centres[None, :] - x) ** 2 + (centres[:, None] - y) ** 2) / (2 * 0.12**2))
    return bump.astype(np.float32)


def look_at(targets: Sequence[int], seed: int = 0, shift: float = 0.0) -> list[Observation]:
    """Observes a picture of each class, looked at in about its place, or `shift` to the right of it."""
    random = np.random.default_rng(seed)
    looks = []
    for target in targets:
        x, y = PLACES[target % len(PLACES)]
        map_ = draw_map(x + shift + random.normal(0, 0.03), y + random.normal(0, 0.03))
        confidence = float(random.uniform(0.5, 0.95))
        rows = random.normal(scale=random.uniform(0.8, 1.2), size=(3, 16, 32)).astype(np.float32)
        scores = ((int(target), confidence), (int(target) + 1, (1 - confidence) / 2))
        looks.append(Observation((map_, draw_map(y, x)), rows, scores, SIZE))
    return looks


def measure_looks(looks: Sequence[Observation]) -> Measurements:
    """Their statistics."""
    return measure(looks, Scale((0,) * 3, (1,) * 3))


def make_reference(count: int = 600, classes: int = 3) -> Reference:
    """The reference of such pictures."""
    looks = look_at([place % classes for place in range(count)], seed=1)
    return build_reference(measure_looks(looks), [None] * count, Provenance("features", "gradcam++", "sha256:0"))


def draw_picture(look: Observation, label: str) -> bytes:
    """A JPEG with a disc where the map has its centre."""
    picture = Image.new("RGB", SIZE, (40, 60, 40 + 60 * (len(label) % 4)))
    x, y = (float(each) for each in np.unravel_index(int(look.maps[0].argmax()), (CELLS, CELLS))[::-1])
    middle = ((x + 0.5) / CELLS * SIZE[0], (y + 0.5) / CELLS * SIZE[1])
    ImageDraw.Draw(picture).ellipse((middle[0] - 9, middle[1] - 9, middle[0] + 9, middle[1] + 9), fill=(230, 200, 60))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def keep(
    to: Path | str,
    looks: Sequence[Observation],
    reference: Reference | None,
    *,
    begin: datetime,
    reasons: Sequence[Reason] = (Reason("sample", {"weight": 4}),),
    kind: str = "thumbnail",
    model: str = "cats",
    step: float = 1.0,
) -> list[Record]:
    """Keeps pictures as a worker does, one each `step` seconds; the reference beside them."""
    store = open_store(str(to))
    found = measure_looks(looks)
    records = []
    digest = reference.digest if reference else None
    for place, look in enumerate(looks):
        values = {name: None if np.isnan(found.values[name][place]) else float(found.values[name][place]) for name in STATISTICS}
        one = Measurements({n: v[place : place + 1] for n, v in found.values.items()}, [found.targets[place]], [""])
        counted = {name: np.flatnonzero(row) for name, row in reference.count(one).items()} if reference else {}
        label = LABELS[look.scores[0][0] % len(LABELS)]
        request = f"order-{begin:%H%M%S}-{place}"
        jpeg = draw_picture(look, label)
        pictures = {
            "thumbnail": Picture("thumbnail", "", jpeg, SIZE),
            "whole": Picture("whole", "", jpeg, SIZE, jpeg, "image/jpeg"),
            "none": Picture("none", "setting"),
        }
        record = Record(
            *(make_id(request), begin + timedelta(seconds=step * place), request, request, 0, False),
            Source(model, "1.0", "sha256:0", "gradcam++", "features", "softmax", digest),
            tuple(reasons),
            tuple(Score(index, LABELS[index % len(LABELS)], share) for index, share in look.scores),
            reference.group(look.scores[0][0]) if reference else None,
            values,
            {name: int(places[0]) for name, places in counted.items() if len(places) and name != "class"},
            look.maps[0],
            SIZE,
            (16.0, 0.0, 80.0, 64.0),
            pictures[kind],
        )
        store.write(f"{record.folder}/{record.name}.json", record.to_json())
        records.append(record)
    if reference is not None:
        store.write(f"{model}/{name_reference(reference.digest)}", reference.to_json().encode())
    return records
