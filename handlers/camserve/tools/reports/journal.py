"""Keeps `explanations.jsonl`: one row for each picture, written as the run goes on, so that an interrupted run can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

Row = dict[str, Any]


class Journal:
    """The rows of a folder's `explanations.jsonl`. As a context manager it takes new ones, and leaves one row for each file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.is_file():
            for line in path.read_bytes().splitlines():
                row = _row(line)
                if row is not None:
                    self.rows[row["file"]] = row

    def done(self, file: str, digest: str, asked: Mapping[str, Any]) -> bool:
        """Tells whether the same picture was explained with the same options, and its overlays are still there."""
        row = self.rows.get(file)
        if row is None or "error" in row or row["sha256"] != digest or row["asked"] != asked:
            return False
        overlays = [each["overlay"] for each in row["explanations"] if each.get("overlay")]
        return all((self.path.parent / overlay).is_file() for overlay in overlays)

    def add(self, row: Row) -> None:
        """Writes a row, in place of an earlier one of the same file."""
        self.rows[row["file"]] = row
        self._file.write(_line(row))
        self._file.flush()

    def __enter__(self) -> Journal:
        self._compact()  # also drops a truncated last line, to which the next one would be appended
        self._file: TextIO = self.path.open("a", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._compact()

    def _compact(self) -> None:
        part = self.path.with_suffix(f".{os.getpid()}.part")
        part.write_text("".join(_line(row) for row in self.rows.values()), "utf-8", newline="\n")
        part.replace(self.path)


def _row(line: bytes) -> Row | None:
    """Reads a row; None for a truncated line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("file"), str) and {"sha256", "asked"} <= row.keys()
    return row if whole and ("error" in row or "explanations" in row) else None


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
