"""Evidence as it is looked at: a store, what was read of it, and the references that it is compared with."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries, list_models, read_record, read_records
from camserve.monitoring.evidence.records import EvidenceError, Record
from camserve.monitoring.evidence.stores import Store, StoreError, open_store
from camserve.monitoring.reference import Reference
from camserve.tools.console import ToolError, command_of
from camserve.tools.reports.pictures import thumbnail
from camserve.tools.watching.evidence.kept import Seen, Shelf, describe_record
from camserve.tools.watching.evidence.marks import Mark, last_marks
from camserve.tools.watching.evidence.normal.references import References
from camserve.tools.watching.evidence.numbers.prometheus import fetch_counts
from camserve.tools.watching.evidence.pages.findings import Asked, Findings, find
from camserve.tools.watching.evidence.pages.report import MOST, write_report

SIDE = 400
"""Longest side of a picture in a file."""
NORMAL = 120
"""Examples of the reference in a report."""


@dataclass(frozen=True)
class Evidence:
    """What is kept, and what it is compared with.

    Attributes:
        prometheus: the URL of one that counted all predictions; "": the sample stands for them.
    """

    store: Store
    shelf: Shelf
    references: References
    prometheus: str = ""

    def models(self) -> list[str]:
        """Returns the folders of the models that have evidence."""
        return list_models(self.store)

    def report(
        self, folder: str, asked: Asked, most: int = MOST, picture: Callable[[Seen], str | None] | None = None
    ) -> dict[str, Any]:
        """Builds a model's report: see `write_report`. Its pictures are in it where `picture` is not given."""

        def marks(entries: Iterable[Entry]) -> Mapping[str, Mark]:
            return last_marks(self.store, entries)

        def look_up(digest: str) -> Reference | None:
            return self.references.find(folder, digest)

        count = partial(fetch_counts, self.prometheus) if self.prometheus else None
        found = find(self.shelf, folder, asked, look_up, count)
        normal = self._normal(found) if found.digest else []
        return write_report(folder, found, marks, picture or self.embed, normal=normal, most=most)

    def _normal(self, found: Findings) -> list[dict[str, Any]]:
        """Returns the cards of the reference's examples, those of the classes that are seen now first."""
        labels = {each.card["label"] for each in found.seen}
        examples = sorted(self.references.examples(found.digest or ""), key=lambda record: record.classes[0].label not in labels)
        about = {"normal": True, "rates": [], "mark": None}
        return [{**describe_record(record, 0.0), **about, "picture": _embed(record)} for record in examples[:NORMAL]]

    def embed(self, seen: Seen) -> str | None:
        """Encodes a kept picture as a data URL; None where there is none, or it is gone."""
        if not seen.card["seen"]:
            return None
        try:
            return _embed(read_record(self.store, seen.entry))
        except (EvidenceError, OSError):
            return None


def _embed(record: Record) -> str | None:
    return None if record.picture.kind == "none" else thumbnail(io.BytesIO(record.picture.jpeg), SIDE)


def open_evidence(place: str, archives: Sequence[Path] = (), prometheus: str = "") -> Evidence:
    """Opens what is kept in a folder, or where a URL leads.

    Args:
        archives: that may hold references and examples.
        prometheus: as `Evidence` has it.

    Raises:
        ToolError: there is no such folder, or nothing that is installed opens such a URL.
    """
    if place.startswith(("http://", "https://")):
        raise ToolError(
            f"{place}: evidence is kept in a folder or an object store; a page of {command_of('inspector')} is for a browser"
        )
    if "://" not in place and not Path(place).is_dir():
        raise ToolError(f"there is no folder {place}; expected one that evidence is kept in, or a URL (s3://bucket/prefix)")
    try:
        store = open_store(place)
    except StoreError as error:
        raise ToolError(str(error)) from error
    return Evidence(store, Shelf(store), References(store, archives), prometheus)


def copy_marked(place: str, verdict: str, model: str | None, to: Path, say: Callable[[str], None]) -> list[str]:
    """Copies the pictures of records that were marked so into a folder: the client's files, or else what was kept to be shown.

    Args:
        place: where evidence is kept.
        model: of this one alone; None: of all.
        say: told what stands for what.

    Returns:
        The files' names, by time.

    Raises:
        ToolError: nothing is kept there, or none of it was marked so and has a picture.
    """
    store = open_evidence(place).store
    entries = list_entries(store, model)
    marks = last_marks(store, entries)
    marked = [entry for entry in entries if entry.name in marks and marks[entry.name].verdict == verdict]
    counts = Counter[str]()
    names = []
    for record in read_records(store, marked):
        picture = record.picture
        counts[picture.kind] += 1
        if picture.kind != "none":
            ending = picture.media_type.rpartition("/")[2] or "jpeg"
            names.append(f"{record.name}.{ending if ending.isalnum() else 'bin'}")
            (to / names[-1]).write_bytes(picture.file or picture.jpeg)
    if not names:
        kept = f"; of {counts['none']} that are, no picture was kept" if counts["none"] else ""
        raise ToolError(f"{place}: no picture is marked {verdict}{kept}")
    if counts["thumbnail"]:
        say(f"{counts['thumbnail']} of {len(names)} are thumbnails, which stand for the originals (`picture: whole` keeps those)")
    return names
