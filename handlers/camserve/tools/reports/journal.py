"""Keeps `explanations.jsonl`: one row for each picture, written as the run goes on, so that an interrupted run can resume."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

from camserve.tools.console import ToolError

Row = dict[str, Any]
LOCK = ".explanations.lock"
VERDICTS = (400, 406, 413)
"""Statuses that say something of the picture; other failures say that it was not looked at, and leave an earlier row alone."""


class Journal:
    """The rows of a folder's `explanations.jsonl`. As a context manager it takes new ones, and leaves one row for each file.

    Meanwhile no other run may write into the folder: entering raises `ToolError` where one does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._read()

    def compare(self, file: str, digest: str, asked: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str] | None:
        """Compares what is wanted with the row of the same picture.

        Args:
            digest: of the picture.
            asked: the options, with who is asked under `model`.
            identity: members that the row must have with these values, which tell one model and its settings from another.

        Returns:
            What differs, in words; empty: it is done. None: there is no such row, it failed, or its overlays are gone.
        """
        row = self.rows.get(file)
        if row is None or "error" in row or row["sha256"] != digest:
            return None
        overlays = [each["overlay"] for each in row["explanations"] if each.get("overlay")]
        if not all((self.path.parent / overlay).is_file() for overlay in overlays):
            return None
        before = {name: row["asked"].get(name) for name in {*asked, *row["asked"]}}
        return _differences(before, asked) + _differences({name: row.get(name) for name in identity}, identity)

    def done(self, file: str, digest: str, asked: Mapping[str, Any], identity: Mapping[str, Any] | None = None) -> bool:
        """Tells whether the same picture was explained by the same model with the same options: see `compare`."""
        return self.compare(file, digest, asked, identity or {}) == []

    def add(self, row: Row) -> None:
        """Writes a row, in place of an earlier one of the same file, which stays where the new one failed for no fault of it."""
        earlier = self.rows.get(row["file"])
        whole = earlier is not None and "error" not in earlier and earlier["sha256"] == row["sha256"]
        if whole and "error" in row and row["error"]["status"] not in VERDICTS:
            return
        self.rows[row["file"]] = row
        self._file.write(_line(row))
        self._file.flush()

    def __enter__(self) -> Journal:
        self._lock = lock(self.path.with_name(LOCK), "--out")
        self._read()  # another run may have ended meanwhile
        self._compact()  # also drops a truncated last line, to which the next one would be appended
        self._file: TextIO = self.path.open("a", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._compact()
        self._lock.close()

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        rows = [row for row in map(_row, lines) if row is not None]
        self.rows = {row["file"]: row for row in rows}

    def _compact(self) -> None:
        part = self.path.with_suffix(f".{os.getpid()}.part")
        part.write_text("".join(_line(row) for row in self.rows.values()), "utf-8", newline="\n")
        part.replace(self.path)


def lock(path: Path, flag: str) -> IO[bytes]:
    """Locks a file for this process until it is closed, or the process ends however it ends.

    Args:
        flag: by which the user chooses the folder.

    Raises:
        ToolError: another process has locked it, or it cannot be locked.
    """
    file = path.open("a+b")
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise ToolError(f"another run writes into {path.parent}: let it end, or choose another folder with {flag}") from None
        raise ToolError(f"{path} cannot be locked ({error.strerror}): choose a folder on this machine with {flag}") from error
    return file


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {_shown(before.get(name))}, is {_shown(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    """A value as a message repeats it; of a digest what answers show of it."""
    text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text[:19] if text.startswith("sha256:") else text[:100]


def _row(line: bytes) -> Row | None:
    """Reads a row; None for a truncated line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("file"), str) and {"sha256", "asked"} <= row.keys()
    return row if whole and isinstance(row["asked"], dict) and ("error" in row or "explanations" in row) else None


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
