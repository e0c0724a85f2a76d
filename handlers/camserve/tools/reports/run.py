"""Explains many pictures into a folder: a row of JSON for each, and its overlays as files."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import read_overlay
from camserve.tools.client.sources import AnswerSource
from camserve.tools.reports.journal import Journal, Row


class Run:
    """Explains pictures into a folder.

    Args:
        source: who is asked.
        out: the folder.
        asked: the options, with who is asked under `model`.
    """

    def __init__(self, source: AnswerSource, out: Path, asked: Mapping[str, Any]) -> None:
        self.journal = Journal(out / "explanations.jsonl")
        self.faults: dict[tuple[int | None, str], list[Row]] = {}
        """The rows that failed, in the pictures' order, by their error's status and type."""
        self._source = source
        self._out = out
        self._asked = dict(asked)
        self._options = {name: value for name, value in asked.items() if name != "model"}

    def explain(self, pictures: Sequence[Path], jobs: int, again: bool = False) -> Counter[str]:
        """Explains the pictures, `jobs` at a time, and counts those `explained`, `done` before, and `failed`.

        What is finished stays after Ctrl-C. `again`: explain also what was done before.
        """
        counts: Counter[str] = Counter(explained=0, done=0, failed=0)
        (self._out / "overlays").mkdir(exist_ok=True)
        with self.journal, ThreadPoolExecutor(jobs) as threads, _bar() as bar:
            task = bar.add_task("Explain", total=len(pictures), asked=0)
            turns = _in_flight(threads, (lambda path=path: self._explain_one(path, again) for path in pictures), 2 * jobs)
            for row in turns:
                counts[self._keep(row)] += 1
                bar.update(task, advance=1, asked=counts["explained"] + counts["failed"])
        places = {_name(path): place for place, path in enumerate(pictures)}
        for rows in self.faults.values():
            rows.sort(key=lambda row: places[row["file"]])
        return counts

    def _keep(self, row: Row | None) -> str:
        if row is None:
            return "done"
        self.journal.add(row)
        if "error" not in row:
            return "explained"
        self.faults.setdefault((row["error"]["status"], row["error"]["type"]), []).append(row)
        return "failed"

    def _explain_one(self, path: Path, again: bool) -> Row | None:
        """Explains one picture; its row, or None where it was done before."""
        row: Row = {"file": _name(path), "sha256": None, "asked": self._asked}
        try:
            picture = path.read_bytes()
        except OSError as error:
            return {**row, "error": _fault(None, "Unreadable", f"the file cannot be read: {error.strerror}")}
        row["sha256"] = hashlib.sha256(picture).hexdigest()
        if not again and self.journal.done(row["file"], row["sha256"], self._asked):
            return None
        started = time.perf_counter()
        try:
            answer = self._source.ask(picture, self._options)
        except CamserveError as error:
            return {**row, "error": _fault(error.status, error.type, error.message)}
        return {**row, "seconds": round(time.perf_counter() - started, 4), **self._write_overlays(path, row["sha256"], answer)}

    def _write_overlays(self, path: Path, digest: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Writes the answer's overlays to files; the answer, which names them."""
        explanations = []
        for explanation in answer["explanations"]:
            picture = read_overlay(explanation)
            place = Path("overlays", f"{_stem(path, digest)}.{explanation['target']}.png")
            if picture is not None:
                (self._out / place).write_bytes(picture)
            named = {} if picture is None else {"overlay": place.as_posix()}
            explanations.append({**explanation, **named})
        return {**answer, "explanations": explanations}


def _in_flight(threads: ThreadPoolExecutor, work: Iterator[Any], most: int) -> Iterator[Row | None]:
    """Results as they come, with at most `most` pieces of work begun and not yet taken; what is left is dropped on an error."""
    begun: set[Future[Row | None]] = {threads.submit(piece) for piece in islice(work, most)}
    try:
        while begun:
            ready, begun = wait(begun, return_when=FIRST_COMPLETED)
            begun |= {threads.submit(piece) for piece in islice(work, len(ready))}
            for each in ready:
                yield each.result()
    finally:
        for each in begun:
            each.cancel()


def _name(path: Path) -> str:
    """The path as rows hold it: JSON has no place for a name that is not Unicode."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _stem(path: Path, digest: str) -> str:
    """A file name that no other picture has, without any character that a file system, a URL or a shell minds."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", path.stem)[:60].strip("_") or "picture"
    unique = hashlib.sha256(f"{_name(path)}\n{digest}".encode()).hexdigest()[:10]
    return f"{readable}.{unique}"


def _fault(status: int | None, kind: str, message: str) -> dict[str, Any]:
    return {"status": status, "type": kind, "message": message}


class _Rate(ProgressColumn):
    """Pictures a second, of those that were asked for in this run."""

    def render(self, task: Task) -> Text:
        rate = task.fields["asked"] / task.elapsed if task.elapsed else 0
        return Text(f"{rate:.1f}/s", style="progress.data.speed")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    progress = Progress(*columns)
    progress.disable = not progress.console.is_terminal
    return progress
