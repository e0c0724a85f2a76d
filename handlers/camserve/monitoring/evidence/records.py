"""What one record of evidence is, and how it is written: a JSON document, whose name says when, of which class and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.messages import Score
from camserve.core.version import __version__
from camserve.monitoring.evidence.names import name_folder, name_record, read_time, write_time

FORMAT = 1


class EvidenceError(ValueError):
    """A record cannot be read; the message says why, in one line."""


@dataclass(frozen=True)
class Reason:
    """Why a prediction is kept.

    Attributes:
        kind: one of `KINDS`.
        about: what more there is to say, as the record has it: `weight` of a sample, `warning` of a degenerate map, `confidence`
            and `below`, or `statistic`, `bin`, `share` and `side` of a rare one.
    """

    kind: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The reason as names tell it, one of `TAGS`."""
        return f"rare.{self.about['statistic']}" if self.kind == "rare" else self.kind


@dataclass(frozen=True)
class Picture:
    """What is kept of a picture.

    Attributes:
        kind: `none`, `thumbnail` or `whole`.
        why: why there is none: `setting`, `tensor` or `unreadable`.
        jpeg: to be shown, turned as the model saw it.
        size: (width, height) of that.
        file: as the client sent it, and its media type, where the whole is kept.
    """

    kind: str
    why: str = ""
    jpeg: bytes = field(default=b"", repr=False)
    size: tuple[int, int] = (0, 0)
    file: bytes = field(default=b"", repr=False)
    media_type: str = ""


@dataclass(frozen=True)
class Source:
    """What all records of one worker have in common: which model made the map, and how."""

    model: str
    version: str
    weights: str
    method: str
    layer: str
    scores: str
    reference: str | None


@dataclass(frozen=True)
class Record:
    """One kept prediction.

    Attributes:
        request_id: the client's, or the one that the host made; "" where there was no request.
        answer_id: as the answer carries it.
        instance: the place in a KServe request.
        explain: an explanation was asked for.
        classes: most probable first, as the prediction lists them; the map is the first one's.
        group: the class's in the reference; None: there is none.
        statistics: by the names of `STATISTICS`; None: the prediction has it not.
        bins: of the reference, by statistic.
        raw_map: `[h, w]`, float32, as the method makes it.
        image: (width, height) of the original; None: a tensor, or not known.
        view: the rectangle of the original that the map covers, in its pixels; None: not known.
    """

    id: str
    time: datetime
    request_id: str
    answer_id: str
    instance: int
    explain: bool
    source: Source
    reasons: tuple[Reason, ...]
    classes: tuple[Score, ...]
    group: int | None
    statistics: Mapping[str, float | None]
    bins: Mapping[str, int]
    raw_map: NDArray[np.float32] = field(repr=False, compare=False)
    image: tuple[int, int] | None
    view: tuple[float, ...] | None
    picture: Picture
    camserve: str = __version__

    @property
    def target(self) -> int:
        """The index of the class whose map it is."""
        return self.classes[0].index

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The map scaled to [0, 1], `[h, w]`; zeros where it says nothing."""
        low, high = float(self.raw_map.min()), float(self.raw_map.max())
        if not np.isfinite([low, high]).all() or high - low <= 1e-6 * high:
            return np.zeros_like(self.raw_map)
        scaled: NDArray[np.float32] = (self.raw_map - np.float32(low)) / np.float32(high - low)
        return scaled

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        return name_record(self.time, self.id, self.target, [each.tag for each in self.reasons])

    @property
    def folder(self) -> str:
        """The folder of its model and day."""
        return f"{name_folder(self.source.model)}/{self.time:%Y-%m-%d}"

    def to_json(self) -> bytes:
        """Write what `read` reads."""
        return json.dumps(self._describe(), separators=(",", ":"), allow_nan=False).encode()

    def _describe(self) -> dict[str, Any]:
        source = self.source
        values = np.ascontiguousarray(self.raw_map, dtype="<f4")
        return {
            **{"format": FORMAT, "camserve": self.camserve, "id": self.id, "time": write_time(self.time)},
            **{"request_id": self.request_id, "answer_id": self.answer_id, "instance": self.instance, "explain": self.explain},
            **{"model": source.model, "version": source.version, "weights": source.weights},
            **{"method": source.method, "layer": source.layer, "scores": source.scores, "reference": source.reference},
            "reasons": [{"kind": each.kind, **each.about} for each in self.reasons],
            "classes": [{"index": each.index, "label": each.label, "probability": each.probability} for each in self.classes],
            **{"target": self.target, "label": self.classes[0].label, "group": self.group},
            **{"statistics": dict(self.statistics), "bins": dict(self.bins)},
            "map": {"shape": list(values.shape), "dtype": "<f4", "data": _encode(values.tobytes())},
            "image": self.image and {"width": self.image[0], "height": self.image[1]},
            "view": self.view and list(self.view),
            "picture": _describe_picture(self.picture),
        }

    @staticmethod
    def read(data: bytes) -> Record:
        """Read a record.

        Raises:
            EvidenceError: it is damaged, or of a later format.
        """
        try:
            values = json.loads(data)
            if values["format"] > FORMAT:
                raise EvidenceError(f"the record is of format {values['format']}, this release reads {FORMAT}")
            return _read(values)
        except EvidenceError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise EvidenceError(f"the record cannot be read ({type(error).__name__})") from None


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _describe_picture(picture: Picture) -> dict[str, Any]:
    if picture.kind == "none":
        return {"kind": "none", "why": picture.why}
    shown = {"kind": picture.kind, "width": picture.size[0], "height": picture.size[1], "jpeg": _encode(picture.jpeg)}
    file = {"media_type": picture.media_type, "data": _encode(picture.file)}
    return {**shown, "file": file} if picture.kind == "whole" else shown


def _read_picture(values: Any) -> Picture:
    if values["kind"] == "none":
        return Picture("none", values["why"])
    file = values.get("file") or {"data": "", "media_type": ""}
    shown = base64.b64decode(values["jpeg"]), (int(values["width"]), int(values["height"]))
    return Picture(values["kind"], "", *shown, base64.b64decode(file["data"]), file["media_type"])


def _read(values: Any) -> Record:
    source = Source(*(values[name] for name in ("model", "version", "weights", "method", "layer", "scores", "reference")))
    height, width = values["map"]["shape"]
    flat = np.frombuffer(base64.b64decode(values["map"]["data"]), dtype="<f4")
    image, view = values["image"], values["view"]
    classes = tuple(Score(int(each["index"]), str(each["label"]), float(each["probability"])) for each in values["classes"])
    reasons = tuple(
        Reason(each["kind"], {name: value for name, value in each.items() if name != "kind"}) for each in values["reasons"]
    )
    if not classes:
        raise ValueError
    return Record(
        id=values["id"],
        time=read_time(values["time"]),
        request_id=values["request_id"],
        answer_id=values["answer_id"],
        instance=int(values["instance"]),
        explain=bool(values["explain"]),
        source=source,
        reasons=reasons,
        classes=classes,
        group=values["group"],
        statistics={name: None if value is None else float(value) for name, value in values["statistics"].items()},
        bins={name: int(place) for name, place in values["bins"].items()},
        raw_map=flat.astype(np.float32).reshape(height, width),
        image=image and (int(image["width"]), int(image["height"])),
        view=view and tuple(float(edge) for edge in view),
        picture=_read_picture(values["picture"]),
        camserve=values["camserve"],
    )
