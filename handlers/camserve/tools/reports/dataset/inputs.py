"""The list of a job's pictures: found once, written beside the results, and read a chunk at a time."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from camserve.core.text import join_names, show
from camserve.tools.console import ToolError
from camserve.tools.reports.dataset.storage import Place, open_place, write_whole
from camserve.tools.reports.globs import expand
from camserve.tools.reports.pictures import SUFFIXES, Say, walk_folder

FILE = "_inputs.parquet"
COLUMNS = {"path": ("path", "file", "uri", "url"), "picture": ("bytes", "image", "picture", "content")}
"""The columns that a Parquet input's paths, or pictures, are looked for under, where none is named."""

_ASKED = [("target", pa.string()), ("inside", pa.string())]
SCHEMA = pa.schema([("name", pa.binary()), ("file", pa.binary()), ("column", pa.string()), ("row", pa.int64()), *_ASKED])
"""The fields of `Entry`; names are bytes, for not every path is Unicode."""

PARQUET = ".parquet"
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """One picture.

    Attributes:
        name: its path or URI; of a picture inside a Parquet file, the name that stands beside it, or the file's with the row.
        file, column, row: the Parquet file that holds it, and where; None: `name` is a file.
        target: that it is explained for, as its row in a Parquet input says; None: as the job asks.
        inside: the area that is asked about, likewise. Both as headers hold them.
    """

    name: str
    file: str | None = None
    column: str | None = None
    row: int = 0
    target: str | None = None
    inside: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a Parquet input that are read: names that were given; None: found by their usual names, or not used."""

    path: str | None = None
    picture: str | None = None
    target: str | None = None
    inside: str | None = None


@dataclass(frozen=True)
class Listing:
    """What was found: how many pictures, in how many chunks, and the digest of the list."""

    pictures: int
    chunks: int
    digest: str


def write_list(entries: Iterable[Entry], chunk: int, folder: Place | None) -> Listing:
    """Write a list into a folder, one row group a chunk, and never hold more than a chunk of it; None: only count it.

    Raises:
        ToolError: there is nothing in it.
    """
    digest, pictures, chunks = hashlib.sha256(), 0, 0
    source = iter(entries)
    with _open_writer(folder) as write:
        while several := list(islice(source, chunk)):
            for each in several:
                digest.update(repr(astuple(each)).encode("utf-8", "surrogateescape"))
            write(several)
            pictures, chunks = pictures + len(several), chunks + 1
        if not pictures:
            raise ToolError("--input: its Parquet files have no rows")
    return Listing(pictures, chunks, f"sha256:{digest.hexdigest()}")


@contextmanager
def _open_writer(folder: Place | None) -> Iterator[Callable[[list[Entry]], None]]:
    if folder is None:
        yield lambda _entries: None
        return
    with write_whole(folder, FILE) as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
        yield lambda entries: writer.write_table(_table_of(entries), row_group_size=len(entries))


def _table_of(entries: list[Entry]) -> pa.Table:
    return pa.Table.from_pylist([_with_names(asdict(each), str.encode) for each in entries], schema=SCHEMA)


def _with_names(row: dict[str, Any], change: Callable[..., Any]) -> dict[str, Any]:
    names = {key: None if row[key] is None else change(row[key], "utf-8", "surrogateescape") for key in ("name", "file")}
    return {**row, **names}


class List:
    """A list that was written; it reads a chunk at a time."""

    def __init__(self, folder: Place) -> None:
        place = folder / FILE
        self._file = pq.ParquetFile(place.system.open_input_file(place.path))

    def chunk(self, number: int) -> list[Entry]:
        """Return the pictures of a chunk."""
        return [Entry(**_with_names(row, bytes.decode)) for row in self._file.read_row_group(number).to_pylist()]


def find_entries(named: str, columns: Columns, say: Say) -> Iterator[Entry]:
    """Find the pictures that a folder, a glob, a URI or a Parquet file or folder stands for, one after the other.

    Raises:
        ToolError: there is no such thing, or a Parquet file lacks the columns.
    """
    place = open_place(named)
    if GLOB.search(place.path if place.prefix else named) and not (place.local is not None and place.local.exists()):
        found = _match(place, named)
    elif place.local is not None and place.local.is_file():
        found = iter([place])
    elif place.kind == fs.FileType.Directory:
        found = _list(place, say)
    elif place.kind == fs.FileType.File:
        found = iter([place])
    else:
        raise ToolError(f"{named}: there is no such file or folder")
    first = next(found, None)
    if first is None:
        raise ToolError(f"{named}: there is no picture and no Parquet file; of a folder these are taken: {join_names(SUFFIXES)}")
    if first.path.endswith(PARQUET):
        return _read_parquet([first, *found], columns)
    given = [name for name, value in vars(columns).items() if value is not None]
    if given:
        raise ToolError(f"--{given[0]}-column: {named} is no Parquet input, and has no columns")
    return (_entry_of(each, named) for each in chain([first], found))


def _entry_of(place: Place, named: str) -> Entry:
    if place.path.endswith(PARQUET):
        raise ToolError(f"{named}: expected pictures or Parquet files, got both; name one kind")
    return Entry(str(place))


def _list(place: Place, say: Say) -> Iterator[Place]:
    """List what is in a folder: its Parquet files where there are any, else its pictures."""
    names = place.names()
    tables = sorted(name for name in names if name.endswith(PARQUET) and name[0] not in "._")
    if tables and any(name.lower().endswith(SUFFIXES) for name in names):
        raise ToolError(f"{place}: it holds pictures and Parquet files; name the Parquet file, or a glob of the pictures")
    if tables:
        return iter([place / name for name in tables])
    if place.local is not None:
        return (place.at(str(each)) for each in walk_folder(place.local, say))
    return (each for each in _walk(place) if each.path.lower().endswith(SUFFIXES))


def _walk(place: Place) -> Iterator[Place]:
    """Find all files below a folder, one folder after the other."""
    found = place.system.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
    for each in sorted(found, key=lambda info: str(info.path)):
        if each.type == fs.FileType.Directory:
            yield from _walk(place.at(each.path))
        elif each.type == fs.FileType.File:
            yield place.at(each.path)


def _match(place: Place, named: str) -> Iterator[Place]:
    """Find what a glob stands for: `*`, `?` and `[...]` inside a name, `**` for all folders below."""
    if place.local is not None:
        yield from (place.at(str(each.absolute())) for each in expand(named) if each.is_file())
        return
    wanted = re.compile("".join(_translate(part) for part in re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", place.path)))
    start = place.at(GLOB.split(place.path)[0].rpartition("/")[0])
    yield from (each for each in _walk(start) if wanted.fullmatch(each.path))


def _translate(part: str) -> str:
    if part == "**/":
        return "(?:.*/)?"
    if part in ("*", "?"):
        return "[^/]*" if part == "*" else "[^/]"
    return fnmatch.translate(part).removesuffix(r"\Z").removesuffix(r"\z") if part.startswith("[") else re.escape(part)


def _read_parquet(files: list[Place], columns: Columns) -> Iterator[Entry]:
    """Read paths, or say which rows hold pictures; a file of which a column is missing is refused before any is read."""
    names = [_choose(pq.read_schema(each.system.open_input_file(each.path)), columns, each) for each in files]
    return (entry for place, chosen in zip(files, names, strict=True) for entry in _read_entries(place, chosen))


def _choose(schema: pa.Schema, columns: Columns, place: Place) -> Columns:
    def choose(kind: str, usual: Iterable[str], fits: Callable[[Any], bool]) -> str | None:
        given = getattr(columns, kind)
        if given is not None:
            if given not in schema.names or not fits(schema.field(given).type):
                raise ToolError(f"{place}: it has no column {show(given)} that fits; its columns are {join_names(schema.names)}")
            return str(given)
        return next((name for name in usual if name in schema.names and fits(schema.field(name).type)), None)

    chosen = Columns(
        choose("path", COLUMNS["path"], _is_text),
        None if columns.path is not None and columns.picture is None else choose("picture", COLUMNS["picture"], _holds_bytes),
        choose("target", (), lambda kind: _is_text(kind) or pa.types.is_integer(kind)),
        choose("inside", (), lambda kind: _is_box(kind) or _is_bytes(kind)),
    )
    if chosen.path is None and chosen.picture is None:
        raise ToolError(
            f"{place}: expected a column of paths ({join_names(COLUMNS['path'])}) or of pictures "
            f"({join_names(COLUMNS['picture'])}), or --path-column or --picture-column, got {join_names(schema.names)}"
        )
    return chosen


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_box(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)))


def _holds_bytes(kind: Any) -> bool:
    """Tell whether a column holds pictures: bytes, or a struct with the member `bytes`, as some libraries write it."""
    if pa.types.is_struct(kind):
        return any(each.name == "bytes" and _is_bytes(each.type) for each in kind)
    return _is_bytes(kind)


def picture_column(schema: pa.Schema, name: str) -> str:
    """Return the name of the leaf that holds the bytes of a column."""
    return f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name


def _read_entries(place: Place, chosen: Columns) -> Iterator[Entry]:
    file = pq.ParquetFile(place.system.open_input_file(place.path))
    wanted = [name for name in (chosen.path, chosen.target, chosen.inside) if name is not None]
    held = None if chosen.picture is None else picture_column(file.schema_arrow, chosen.picture)
    row = 0
    for batch in _batches(file, wanted):
        for each in batch:
            path = each.get(chosen.path) if chosen.path else None
            target = each.get(chosen.target) if chosen.target else None
            if held is None and not path:
                raise ToolError(f"{place}: row {row} has no path in the column {show(str(chosen.path))}")
            area = each.get(chosen.inside) if chosen.inside else None
            asked = None if target is None else _write_target(target), None if area is None else _write_area(area)
            if held is None:
                name = str(path)
                yield Entry(name if "://" in name else str(Path(name).absolute()), None, None, 0, *asked)
            else:
                yield Entry(str(path) if path else f"{place}#{row}", str(place), held, row, *asked)
            row += 1


def _batches(file: Any, wanted: list[str]) -> Iterator[list[dict[str, Any]]]:
    if not wanted:  # a file without its rows' number would be read for nothing
        for number in range(file.metadata.num_row_groups):
            yield [{}] * file.metadata.row_group(number).num_rows
        return
    for batch in file.iter_batches(columns=wanted):
        yield batch.to_pylist()


def _write_target(target: object) -> str:
    """Write a target as a header holds it: an index as it is, a label as a JSON list, which no label is mistaken for."""
    return str(target) if isinstance(target, int) else json.dumps([target])


def _write_area(area: bytes | list[float]) -> str:
    """Write an area as a header holds it: a box as a JSON list, a mask in base64."""
    return base64.b64encode(area).decode() if isinstance(area, bytes) else json.dumps(area)
