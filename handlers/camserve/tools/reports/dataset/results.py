"""The folder that a job writes: what is in it, what is done, and what is still to be done.

While the job runs, each chunk of the list is a file of its own in `_chunks`, which gets its name in one step when it is whole:
so a chunk is done, or it is not. When all are done, they are joined into `part-N.parquet`, each of the same chunks whenever it is
made. What readers of Parquet see, names without `_`, is therefore always whole, and has each picture once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute, fs

from camserve.core.text import show
from camserve.tools.console import ToolError
from camserve.tools.reports.dataset.rows import SCHEMA, is_final
from camserve.tools.reports.dataset.storage import UNFINISHED, Place, open_place, write_whole
from camserve.tools.reports.pictures import MANIFEST

CHUNKS = "_chunks"
ARCHIVE = "_archive.mar"
"""The archive's file, from which a cluster's nodes take it while the job runs."""
RUN = b"camserve.run"
"""In a chunk's file: which run of the job wrote it."""
JOINED = 256
"""Chunks in a part."""
AT_ONCE = 16
"""Files that are looked into at a time."""


@dataclass(frozen=True)
class Results:
    """The folder of a job.

    Attributes:
        folder: where it is.
        chunks: how many chunks the list has.
    """

    folder: Place
    chunks: int

    @property
    def parts(self) -> int:
        """How many parts the chunks are joined into."""
        return -(-self.chunks // JOINED)

    def write_chunk(self, number: int, table: pa.Table, run: str) -> None:
        """Write a chunk's rows, in place of those that it had."""
        with write_whole(self.folder, chunk_name(number)) as stream:
            named = table.replace_schema_metadata({RUN: run})
            pq.write_table(named, stream, compression="zstd", row_group_size=max(1, len(table)))

    def read_chunk(self, number: int) -> tuple[pa.Table, str] | None:
        """Return a chunk's rows and the run that wrote them; None where it is not done, or its file is damaged."""
        table = self._read_own(number, None)
        if table is not None:
            return table, (table.schema.metadata or {}).get(RUN, b"").decode()
        joined = self._read_joined(number, None)
        return None if joined is None else (joined, "")

    def find_work(self) -> list[int]:
        """Return the chunks that are not done, or have rows that failed for no fault of the picture."""
        own, names = self._own_chunks(), set(self.folder.names())

        def lacking(part: int) -> list[int]:
            joined = _if_there(lambda: self._open(part_name(part))) if part_name(part) in names else None
            found = []
            for number in range(part * JOINED, min((part + 1) * JOINED, self.chunks)):
                table = self._read_own(number, ["status"]) if number in own else None
                if table is None and joined is not None:
                    table = joined.read_row_group(number % JOINED, columns=["status"])
                if table is None or not all(is_final(status) for status in compute.unique(table["status"]).to_pylist()):
                    found.append(number)
            return found

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return [number for several in threads.map(lacking, range(self.parts)) for number in several]

    def find_unjoined(self) -> list[int]:
        """Return the parts that are not there yet, or of which a chunk was explained again."""
        newer = {number // JOINED for number in self._own_chunks()}
        names = set(self.folder.names())
        return [part for part in range(self.parts) if part in newer or part_name(part) not in names]

    def join(self, part: int) -> None:
        """Join the chunks of a part, one row group a chunk; a chunk at a time is in memory.

        Raises:
            ToolError: a chunk is not there.
        """
        with write_whole(self.folder, part_name(part)) as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
            for number in range(part * JOINED, min((part + 1) * JOINED, self.chunks)):
                found = self.read_chunk(number)
                if found is None:
                    raise ToolError(f"{self.folder}: the chunk {number} is gone; run the job again")
                writer.write_table(found[0].replace_schema_metadata(None), row_group_size=max(1, len(found[0])))

    def clear(self) -> None:
        """Delete what only the job needed, once all parts are there."""
        if (self.folder / ARCHIVE).kind == fs.FileType.File:
            self.folder.system.delete_file((self.folder / ARCHIVE).path)
        (self.folder / CHUNKS).remove()
        (self.folder / UNFINISHED).remove()

    def batches(self, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
        """Read all rows in the list's order, a chunk at a time."""
        names = None if columns is None else list(columns)
        for part in range(self.parts):
            file = self._open(part_name(part))
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=names)

    def _own_chunks(self) -> set[int]:
        """Return the chunks that have a file of their own."""
        return {int(name.partition(".")[0]) for name in (self.folder / CHUNKS).names() if name[:1].isdecimal()}

    def _read_own(self, number: int, columns: list[str] | None) -> pa.Table | None:
        return _if_there(lambda: self._open(chunk_name(number)).read(columns=columns))

    def _read_joined(self, number: int, columns: list[str] | None) -> pa.Table | None:
        return _if_there(lambda: self._open(part_name(number // JOINED)).read_row_group(number % JOINED, columns=columns))

    def _open(self, name: str) -> Any:
        place = self.folder / name
        return pq.ParquetFile(place.system.open_input_file(place.path))


def _if_there(read: Callable[[], Any]) -> Any:
    """Read a file; None where there is none, or none that is whole: a machine that lost power may leave that."""
    try:
        return read()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def chunk_name(number: int) -> str:
    """Return the name of a chunk's file."""
    return f"{CHUNKS}/{number:08}.parquet"


def part_name(part: int) -> str:
    """Return the name of a part's file."""
    return f"part-{part:05}.parquet"


def read_manifest(folder: Place) -> dict[str, Any] | None:
    """Read what a folder's job was asked for; None where there was none.

    Raises:
        ToolError: the file is none of ours.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read())
    except FileNotFoundError:
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ToolError(f"{folder / MANIFEST}: it was not written by this release; choose another --output")
    return manifest


def write_manifest(folder: Place, manifest: dict[str, Any]) -> None:
    """Write it."""
    with write_whole(folder, MANIFEST) as stream:
        stream.write(json.dumps(manifest, indent=1, sort_keys=True).encode())


FORMAT = 1
"""Of the manifest and the columns."""


def open_finished(named: str) -> tuple[Results, dict[str, Any]]:
    """Open the folder of a job that has ended.

    Raises:
        ToolError: it is none, or the job is not done.
    """
    folder = open_place(named)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ToolError(f"{show(named)} is no folder of explain_dataset: it has no {MANIFEST}")
    if not manifest.get("finished"):
        raise ToolError(f"{show(named)}: its job has not ended; run it again, and it goes on where it stopped")
    return Results(folder, int(manifest["chunks"])), manifest
