"""What a record of evidence, and what lies beside it, is called: the name says when, of which class and why."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from camserve.monitoring.statistics import STATISTICS

KINDS = ("sample", "degenerate", "unseen", "unsure", "rare")
"""Why a prediction is kept: drawn by chance; its map says nothing; a class that the reference never saw; little confidence; a
statistic where the reference has hardly any."""

TAGS = (*KINDS[:-1], *(f"rare.{name}" for name in STATISTICS))
"""Every reason as names tell it, one bit each; those of later releases are added at the end."""

LATEST = re.compile(r"(\d{8}T\d{6}\.\d{3}Z)-([0-9a-f]{16})-(\d+)-([0-9a-f]+)")
ENDING = ".json"
_TIME = "%Y%m%dT%H%M%S.%f"


@dataclass(frozen=True)
class Entry:
    """A record as its name tells it.

    Attributes:
        path: in the store.
        model: the folder's name.
        reasons: of `TAGS`.
        size: bytes of its file.
    """

    path: str
    model: str
    name: str
    time: datetime
    id: str
    target: int
    reasons: tuple[str, ...]
    size: int

    @staticmethod
    def of(path: str, size: int) -> Entry | None:
        """Read the path of a file in a store; None: it is no record's."""
        model, _, name = path.split("/") if path.count("/") == 2 else ("", "", "")
        match = LATEST.fullmatch(name.removesuffix(ENDING)) if name.endswith(ENDING) else None
        if match is None:
            return None
        try:
            time = datetime.strptime(match[1].removesuffix("Z"), _TIME).replace(tzinfo=timezone.utc)
        except ValueError:
            return None
        bits = int(match[4], 16)
        tags = tuple(tag for place, tag in enumerate(TAGS) if bits >> place & 1)
        return Entry(path, model, name.removesuffix(ENDING), time, match[2], int(match[3]), tags, size)


def make_id(request_id: str) -> str:
    """Make a record's id, whose last eight digits tell the request: `digest_request`."""
    return secrets.token_hex(4) + digest_request(request_id)


def digest_request(request_id: str) -> str:
    """Return eight hexadecimal digits of a request's id."""
    return hashlib.sha256(request_id.encode("utf-8", "replace")).hexdigest()[:8]


def name_record(time: datetime, identity: str, target: int, tags: Sequence[str]) -> str:
    """Name a record: its time, id, class and reasons; names sort by time."""
    bits = sum(1 << TAGS.index(tag) for tag in set(tags))
    return f"{time.strftime(_TIME)[:-3]}Z-{identity}-{target}-{bits:x}"


def name_folder(model: str) -> str:
    """Name a model's folder: what no folder can be called everywhere becomes `_`, and no name leads elsewhere."""
    return re.sub(r"^\.+|[^A-Za-z0-9_.-]", "_", model)[:200] or "_"


def name_reference(digest: str) -> str:
    """Name the file, in a model's folder, of the reference that records are compared with (`Reference.to_json`)."""
    return f"reference-{digest}{ENDING}"


def write_time(time: datetime) -> str:
    """Write a time as records have it: UTC, to the millisecond."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_time(text: str) -> datetime:
    """Read what `write_time` writes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
