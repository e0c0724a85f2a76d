"""Reads the pictures that a list names."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow.parquet as pq

from camserve.tools.client.client import CamserveError
from camserve.tools.console import ToolError
from camserve.tools.reports.dataset.inputs import Entry
from camserve.tools.reports.dataset.storage import open_named


class Reader:
    """Reads pictures, from any thread; of Parquet files that hold some, a row group at a time is in memory.

    Args:
        query: what the input's URI says of its file system.
        most: bytes of a picture; None: any number.
    """

    def __init__(self, query: str, most: int | None = None) -> None:
        self._query = query
        self._most = most
        self._turn = threading.Lock()
        self._held: tuple[str, str, int, Any] | None = None
        self._file: tuple[str, Any] | None = None

    def read(self, entry: Entry) -> bytes | CamserveError:
        """Read a picture, or say why it cannot be read."""
        try:
            if entry.file is None:
                picture = open_named(entry.name, self._query if "://" in entry.name else "").read(self._most)
            else:
                with self._turn:
                    picture = self._read_cell(entry)
        except (OSError, ToolError, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            return CamserveError(None, "Unreadable", f"the picture cannot be read: {reason}")
        if self._most is not None and len(picture) > self._most:
            return CamserveError(
                413, "RequestTooLarge", f"the picture's file is larger than {self._most} bytes (--max-request-size)"
            )
        return picture

    def _read_cell(self, entry: Entry) -> bytes:
        """Read a picture that stands in a column; raise ValueError where its row holds none."""
        name, column = str(entry.file), str(entry.column)
        file = self._open(name)
        group, row = 0, entry.row
        while row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        if self._held is None or self._held[:3] != (name, column, group):
            self._held = None
            self._held = (name, column, group, file.read_row_group(group, columns=[column]).column(0))
        value = self._held[3][row].as_py()
        picture = value.get("bytes") if isinstance(value, dict) else value
        if picture is None:
            raise ValueError("its row holds no picture")
        return bytes(picture)

    def _open(self, name: str) -> Any:
        if self._file is None or self._file[0] != name:
            place = open_named(name, self._query if "://" in name else "")
            self._file = (name, pq.ParquetFile(place.system.open_input_file(place.path)))
        return self._file[1]
