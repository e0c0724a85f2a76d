"""What is watched of predictions, and what is kept of them: the values of `monitor` and `evidence`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from camserve.core.values import Values, choice, integer, number

PICTURES = ("none", "thumbnail", "whole")
"""What is kept of a picture."""


@dataclass(frozen=True)
class Monitoring:
    """Which share of the predictions is measured, and how many seconds lie between two reports.

    `budget`: how long backward passes for this alone may take, as a share of the other passes' time; 1: as long as they
    take; None: a share that depends on the batch.
    """

    rate: float = 1.0
    interval: float = 15.0
    budget: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Which of the watched predictions are kept, with picture and map, and how much of them.

    Attributes:
        to: an absolute folder, or a URL such as `s3://bucket/folder`; None: the server knows.
        picture: what is kept of the picture, one of `PICTURES`.
        sample: how many an hour, drawn evenly.
        per_reason: how many an hour for one reason to call a prediction unusual; half of them are for classes that had none.
        per_class: how many of one class an hour for one reason.
        confidence: a most probable class of less probability is unusual; 0: none is.
        max_bytes, max_records, max_days: what all records of the model may take, together; the oldest go first.
    """

    to: str | None = None
    picture: str = "thumbnail"
    sample: int = 60
    per_reason: int = 40
    per_class: int = 20
    confidence: float = 0.2
    max_bytes: int = 2_000_000_000
    max_records: int = 20_000
    max_days: float = 30


def read_place(value: Any) -> str | None:
    """Read where evidence is kept: an absolute folder, a URL, or None.

    Raises:
        ValueError, TypeError: it is anything else. A relative folder would lie wherever a worker happens to run.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError
    scheme, mark, rest = value.partition("://")
    if not (scheme.isalnum() and rest.strip("/")) if mark else not PurePath(value).is_absolute():
        raise ValueError
    return value


PLACE = Values("an absolute folder, or a URL such as s3://bucket/folder", read_place)

_MONITOR = {"rate": number(0, 1), "interval": number(0.1, 3600), "budget": number(0.001, 1)}
_EVIDENCE = {
    "to": PLACE,
    "picture": choice(PICTURES),
    "sample": integer(0, 600),
    "per_reason": integer(0, 1_000),
    "per_class": integer(1, 1_000),
    "confidence": number(0, 1),
    "max_bytes": integer(1_000_000, 10**15),
    "max_records": integer(10, 10**7),
    "max_days": number(0.01, 3_650),
}


def _flag_or(parts: Mapping[str, Values]) -> Values:
    """True, false, or a mapping of these parts; read as it stands, checked: YAML and JSON write it again."""

    def read(value: Any) -> bool | dict[str, Any]:
        if isinstance(value, bool):
            return value
        if not isinstance(value, Mapping) or not set(value) <= set(parts):
            raise ValueError
        return {name: parts[name].read(given) for name, given in value.items()}

    inside = ", ".join(f"{name}: {values.accepts}" for name, values in parts.items())
    return Values(f"true, false or {{{inside}}}", read)


MONITOR, EVIDENCE = _flag_or(_MONITOR), _flag_or(_EVIDENCE)
