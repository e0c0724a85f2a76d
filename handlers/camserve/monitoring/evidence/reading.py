"""Finds, reads and deletes records. Listing looks at names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from camserve.monitoring.evidence.names import ENDING, Entry, digest_request, name_folder
from camserve.monitoring.evidence.records import EvidenceError, Record
from camserve.monitoring.evidence.stores import Store

__all__ = ["EvidenceError", "delete_entries", "find_entries", "list_entries", "list_models", "read_record", "read_records"]


def list_models(store: Store) -> list[str]:
    """Return the folders of the models that have evidence, sorted; see `records.name_folder`."""
    return store.list_folders()


def list_entries(
    store: Store, model: str | None = None, since: datetime | None = None, until: datetime | None = None
) -> list[Entry]:
    """List the records of a model, or of all, oldest first.

    Args:
        since, until: times with a zone: those with `since <= time < until`.
    """
    entries = [
        entry
        for folder in ([name_folder(model)] if model is not None else list_models(store))
        for day in store.list_folders(folder)
        if _may_hold(day, since, until)
        for entry, _ in list_day(store, f"{folder}/{day}")
        if (since is None or entry.time >= since) and (until is None or entry.time < until)
    ]
    return sorted(entries, key=lambda entry: (entry.time, entry.id))


def list_day(store: Store, folder: str) -> list[tuple[Entry, int]]:
    """List the records in a folder of one day, each with the bytes that lie beside it."""
    listed = store.list_files(folder)
    entries = [entry for name, size in listed if (entry := Entry.of(f"{folder}/{name}", size))]
    together: dict[str, int] = {}
    for name, size in listed:
        together[_stem(name)] = together.get(_stem(name), 0) + size
    return [(entry, together[entry.name] - entry.size) for entry in entries]


def list_beside(store: Store, entry: Entry) -> list[str]:
    """Return the paths of what lies beside a record and belongs to it: its marks."""
    folder = entry.path.rpartition("/")[0]
    return [f"{folder}/{name}" for name, _ in store.list_files(folder) if _belongs(name, entry)]


def read_record(store: Store, entry: Entry) -> Record:
    """Read a record.

    Raises:
        EvidenceError: it is damaged, of a later format, or gone.
    """
    try:
        return Record.read(store.read(entry.path))
    except FileNotFoundError:
        raise EvidenceError("the record is gone: it was deleted meanwhile") from None


def read_records(store: Store, entries: Iterable[Entry]) -> Iterator[Record]:
    """Read records, without those that are damaged, or gone by now."""
    for entry in entries:
        try:
            yield read_record(store, entry)
        except EvidenceError:
            continue


def find_entries(store: Store, wanted: str, model: str | None = None) -> list[Entry]:
    """Find records by their own id, by the id of their request, or by that of its answer.

    By the first two names alone are looked at; where no name has it, all records are read.
    """
    entries = list_entries(store, model)
    digest = digest_request(wanted)
    named = [entry for entry in entries if entry.id == wanted or entry.id.endswith(digest)]
    found = [entry for entry in named if entry.id == wanted or _is_asked(store, entry, wanted)]
    return found or [entry for entry in entries if _is_asked(store, entry, wanted)]


def delete_entries(store: Store, entries: Iterable[Entry]) -> int:
    """Delete records, each with what lies beside it; return how many there were.

    Raises:
        OSError: one of them cannot be deleted.
    """
    by_folder: dict[str, list[Entry]] = {}
    for entry in entries:
        by_folder.setdefault(entry.path.rpartition("/")[0], []).append(entry)
    count = 0
    for folder, several in by_folder.items():
        beside: dict[str, list[str]] = {}
        for name, _ in store.list_files(folder):
            beside.setdefault(_stem(name), []).append(name)
        for entry in several:
            count += _delete(store, entry, beside.get(entry.name, ()))
    return count


def _delete(store: Store, entry: Entry, names: Sequence[str]) -> bool:
    """Delete what lies beside a record first: else it would be left alone where this ends halfway."""
    folder = entry.path.rpartition("/")[0]
    for name in names:
        if name != f"{entry.name}{ENDING}":
            store.delete(f"{folder}/{name}")
    return store.delete(entry.path)


def _stem(name: str) -> str:
    """The name of the record that a file belongs to: what stands before the first dot behind the time's."""
    time, dot, rest = name.partition(".")
    return f"{time}{dot}{rest.partition('.')[0]}"


def _belongs(name: str, entry: Entry) -> bool:
    return _stem(name) == entry.name and name != f"{entry.name}{ENDING}"


def _is_asked(store: Store, entry: Entry, wanted: str) -> bool:
    try:
        record = read_record(store, entry)
    except EvidenceError:
        return False
    return wanted in (record.request_id, record.answer_id)


def _may_hold(day: str, since: datetime | None, until: datetime | None) -> bool:
    """Return False for a day that ends before `since`, or begins after `until`; other names of folders hold none."""
    try:
        start = datetime.fromisoformat(f"{day}T00:00:00+00:00")
    except ValueError:
        return False
    return (since is None or start + timedelta(days=1) > since) and (until is None or start < until)
