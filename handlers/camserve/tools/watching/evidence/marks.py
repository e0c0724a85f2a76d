"""Marks: what people say of kept maps, each a small file beside its record. The last one of a record counts, and none is lost."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from camserve.core.text import show
from camserve.monitoring.evidence.names import ENDING, Entry
from camserve.monitoring.evidence.stores import Store
from camserve.tools.console import ToolError
from camserve.tools.watching.evidence import VERDICTS

LONGEST_NOTE = 1000
LONGEST_NAME = 200
PART = ".mark-"
"""Stands in the name of a mark's file between the record's name and the mark's time."""


@dataclass(frozen=True)
class Mark:
    """What one person said of one record.

    Attributes:
        name: the record's.
        verdict: one of `VERDICTS`.
        who: as the proxy in front of the page named them; "": nobody was named.
    """

    name: str
    verdict: str
    note: str
    who: str
    time: datetime

    @property
    def told(self) -> dict[str, Any]:
        """What a page shows of it."""
        return {"verdict": self.verdict, "note": self.note, "who": self.who, "time": self.time.timestamp()}


def read_verdict(verdict: object, note: object) -> tuple[str, str]:
    """Checks what a person sent.

    Raises:
        ToolError: it is no mark.
    """
    if verdict not in VERDICTS:
        raise ToolError(f"verdict: expected one of {', '.join(VERDICTS)}, got {show(verdict)}")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise ToolError(f"note: expected text of at most {LONGEST_NOTE} characters, got {show(note)}")
    return str(verdict), note


def add_mark(store: Store, entry: Entry, verdict: str, note: str, who: str) -> Mark:
    """Writes a mark beside a record.

    Raises:
        OSError: it cannot be written.
    """
    mark = Mark(entry.name, verdict, note, who[:LONGEST_NAME], datetime.now(timezone.utc))
    row = {"format": 1, "verdict": verdict, "note": note, "who": mark.who, "time": mark.time.isoformat()}
    path = f"{entry.path.removesuffix(ENDING)}{PART}{mark.time:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}.json"
    store.write(path, json.dumps(row).encode())
    return mark


def read_marks(store: Store, entries: Iterable[Entry]) -> dict[str, list[Mark]]:
    """Reads the marks of records, oldest first, by the record's name; those that cannot be read are left out."""
    by_folder: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_folder.setdefault(entry.path.rpartition("/")[0], {})[entry.name] = entry
    found: dict[str, list[Mark]] = {}
    for folder, named in by_folder.items():
        for name, _ in store.list_files(folder):
            of, part, _ = name.partition(PART)
            if part and of in named and (mark := _read(store, named[of], f"{folder}/{name}")) is not None:
                found.setdefault(of, []).append(mark)
    return found


def last_marks(store: Store, entries: Iterable[Entry]) -> Mapping[str, Mark]:
    """Returns each record's last mark, by the record's name."""
    return {name: marks[-1] for name, marks in read_marks(store, entries).items()}


def _read(store: Store, entry: Entry, path: str) -> Mark | None:
    try:
        row = json.loads(store.read(path))
        return Mark(entry.name, str(row["verdict"]), str(row["note"]), str(row["who"]), datetime.fromisoformat(row["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
