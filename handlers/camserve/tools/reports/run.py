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

from camserve.protocol.tensors import is_npy
from camserve.tools.client.annotations import Area
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import read_overlay
from camserve.tools.client.sources import AnswerSource
from camserve.tools.console import ToolError
from camserve.tools.reports import gallery
from camserve.tools.reports.journal import VERDICTS, Journal, Row

TOLD = ("weights", "version", "method", "layer")
"""Members of an answer that tell a server's model and its settings from others."""

CLOSE = 0.01
"""By how much two answers of one model may differ, in probabilities and heatmaps: replicas compute on other processors. Of larger
values it is a share."""


class Run:
    """Explains pictures into a folder.

    Args:
        source: who is asked.
        out: the folder.
        asked: the options, with who is asked under `model`.
        areas: of pictures that are asked about an area of their own.
    """

    def __init__(
        self, source: AnswerSource, out: Path, asked: Mapping[str, Any], areas: Mapping[Path, Area] | None = None
    ) -> None:
        self.journal = Journal(out / "explanations.jsonl")
        self.faults: dict[tuple[int | None, str], list[Row]] = {}
        """The rows that failed, in the pictures' order, by their error's status and type."""
        self.differences: Counter[str] = Counter()
        """What differed, in words, from rows that were there before, and how often."""
        self.models: Counter[str] = Counter()
        """Which weights answered in this run, and how often."""
        self.page = out / "gallery.html"
        self._source = source
        self._out = out
        self._asked = dict(asked)
        self._areas = areas or {}
        self._options = {name: value for name, value in asked.items() if name != "model"}

    def explain(self, pictures: Sequence[Path], jobs: int, again: bool = False) -> Counter[str]:
        """Explains the pictures, `jobs` at a time, and counts those `explained`, `done` before, and `failed`; writes the gallery.

        What is finished stays after Ctrl-C. `again`: explain also what was done before.

        Raises:
            ToolError: another run writes into the folder, or a server that is to be compared with what is done does not answer.
        """
        with self.journal:
            (self._out / "overlays").mkdir(exist_ok=True)
            self._identity, self._changed = ({}, None) if again else self._identify(pictures)
            counts = self._explain_all(pictures, jobs, again)
            gallery.write(list(self.journal.rows.values()), self._out)
        places = {_name(path): place for place, path in enumerate(pictures)}
        for rows in self.faults.values():
            rows.sort(key=lambda row: places[row["file"]])
        return counts

    def _explain_all(self, pictures: Sequence[Path], jobs: int, again: bool) -> Counter[str]:
        counts: Counter[str] = Counter(explained=0, done=0, failed=0)
        with ThreadPoolExecutor(jobs) as threads, _bar() as bar:
            task = bar.add_task("Explain", total=len(pictures), asked=0)
            turns = _in_flight(threads, (lambda path=path: self._explain_one(path, again) for path in pictures), 2 * jobs)
            for row in turns:
                counts[self._keep(row)] += 1
                bar.update(task, advance=1, asked=counts["explained"] + counts["failed"])
        return counts

    def _identify(self, pictures: Sequence[Path]) -> tuple[Mapping[str, Any], str | None]:
        """Finds what a row must have to count as done, and why none counts, where that is so.

        A server says which weights it has only in an answer, and not its preprocessing: so one picture that is done is asked for
        again, and the answers are compared.
        """
        if self._source.identity is not None:
            return self._source.identity, None
        for path in pictures:
            row = self.journal.rows.get(_name(path))
            if row is None:
                continue
            try:
                picture = path.read_bytes()
            except OSError:
                continue
            if not self.journal.done(row["file"], hashlib.sha256(picture).hexdigest(), self._asked_of(path)):
                continue
            options = {name: value for name, value in self._options_for(path, picture).items() if name != "overlay"}
            try:
                answer = self._source.ask(picture, options)
            except CamserveError as error:
                if error.status in VERDICTS:
                    return {}, f"{row['file']} is refused now ({error})"
                raise ToolError(f"what is done cannot be compared with the server's model: {error}") from None
            identity = {name: answer[name] for name in TOLD}
            same = any(identity[name] != row.get(name) for name in TOLD) or _is_close(row, answer)
            return identity, None if same else f"{row['file']} gets another answer now, by the same weights"
        return {}, None

    def _keep(self, row: Row | None) -> str:
        if row is None:
            return "done"
        self.journal.add(row)
        if "error" not in row:
            self.models[row["weights"]] += 1
            return "explained"
        self.faults.setdefault((row["error"]["status"], row["error"]["type"]), []).append(row)
        return "failed"

    def _explain_one(self, path: Path, again: bool) -> Row | None:
        """Explains one picture; its row, or None where it was done before."""
        row: Row = {"file": _name(path), "sha256": None, "asked": self._asked_of(path)}
        try:
            picture = path.read_bytes()
        except OSError as error:
            return {**row, "error": _fault(None, "Unreadable", f"the file cannot be read: {error.strerror}")}
        row["sha256"] = hashlib.sha256(picture).hexdigest()
        differences = None if again else self.journal.compare(row["file"], row["sha256"], row["asked"], self._identity)
        if differences is not None:
            differences += [self._changed] if self._changed and not differences else []
            if not differences:
                return None
            self.differences["; ".join(differences)] += 1
        started = time.perf_counter()
        try:
            answer = self._source.ask(picture, self._options_for(path, picture))
        except CamserveError as error:
            return {**row, "error": _fault(error.status, error.type, error.message)}
        row = {**row, "seconds": round(time.perf_counter() - started, 4), **(self._source.identity or {})}
        answer = self._write_overlays(path, row["sha256"], answer)
        return {**row, **{name: value for name, value in answer.items() if name not in {*row, "error"}}}

    def _options_for(self, path: Path, picture: bytes) -> dict[str, Any]:
        """A tensor has no picture to draw on."""
        options = {name: value for name, value in self._options.items() if name != "overlay" or not is_npy(picture)}
        return options | ({"inside": self._areas[path]} if path in self._areas else {})

    def _asked_of(self, path: Path) -> dict[str, Any]:
        """What a row says that it was asked for: of a mask its digest."""
        asked = self._asked | ({"inside": self._areas[path]} if path in self._areas else {})
        mask = asked.get("inside")
        return asked | ({"inside": f"sha256:{hashlib.sha256(mask.encode()).hexdigest()}"} if isinstance(mask, str) else {})

    def _write_overlays(self, path: Path, digest: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Writes the answer's overlays to files; the answer, which names them."""
        explanations = []
        targets = [explanation["target"] for explanation in answer["explanations"]]
        for number, explanation in enumerate(answer["explanations"]):
            picture = read_overlay(explanation)
            twice = f".{number}" if targets.count(explanation["target"]) > 1 else ""
            place = Path("overlays", f"{_stem(path, digest)}.{int(explanation['target'])}{twice}.png")
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


def _is_close(row: Row, answer: Mapping[str, Any]) -> bool:
    """Tells whether two answers for one picture are one model's, with the same settings."""
    scores, maps = ([_scores(each) for each in (row, answer)], [_maps(each) for each in (row, answer)])
    return row.get("image") == answer["image"] and all(
        len(a) == len(b) and all(abs(x - y) <= CLOSE * max(1.0, abs(x)) for x, y in zip(a, b, strict=True))
        for a, b in (scores, maps)
    )


def _scores(answer: Mapping[str, Any]) -> list[float]:
    """The classes' probabilities by their index: near ties may change places."""
    return [each["probability"] for each in sorted(answer["classes"], key=lambda each: int(each["index"]))]


def _maps(answer: Mapping[str, Any]) -> list[float]:
    return [cell for each in answer["explanations"] for row in each["heatmap"] for cell in row]


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
