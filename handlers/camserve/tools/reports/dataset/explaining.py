"""Explains one chunk of the list after the other: what a worker of a job does, wherever it runs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import Asked, Measured, Worker, WorkerLostError, make_environment
from camserve.pipeline.archive import read_archive
from camserve.tools.client.answers import find_fault, read_json
from camserve.tools.client.client import CamserveError, read_error
from camserve.tools.console import ToolError, command_of
from camserve.tools.reports.dataset.inputs import Entry, List
from camserve.tools.reports.dataset.reading import Reader
from camserve.tools.reports.dataset.results import Results
from camserve.tools.reports.dataset.rows import Row, is_final, row_of_answer, row_of_error, table_of
from camserve.tools.reports.dataset.storage import open_place

READERS = 16
"""Pictures that are read at once, and about how many are read while others are explained: a store takes its time for each."""

PATIENCE = 600
"""Seconds in which a worker may load the model, where the archive gives fewer: a machine's workers all load at once."""

TARGET, INSIDE, CHECK = "x-explain-target", "x-explain-inside", "x-explain-check"
REFUSED = ("UnknownOption", "InvalidOption", "UnknownLabel", "NotAcceptable")
"""Errors that are of what is asked, not of the picture."""


@dataclass(frozen=True)
class Job:
    """What a worker must know.

    Attributes:
        output: the folder, as `open_place` takes it.
        query: what the input's URI says of its file system.
        run: a name for this run of the job.
        archive: SHA-256 of the archive's file.
        chunks: how many the list has.
        headers: the options, as a request's headers.
        batch: pictures that the model gets at once; None: the archive's batchSize.
        threads: of a worker's arithmetic.
        gpu: whether workers have a GPU each.
        most: bytes of a picture.
        statistics: whether they are measured.
    """

    output: str
    query: str
    run: str
    archive: str
    chunks: int
    headers: Mapping[str, str]
    batch: int | None
    threads: int
    gpu: bool
    most: int
    statistics: bool


@dataclass
class Tally:
    """What came of a chunk.

    Attributes:
        number: the chunk's.
        explained, failed: pictures.
        faults: how many, and the first one's name and message, by status and type.
    """

    number: int
    explained: int = 0
    failed: int = 0
    faults: dict[tuple[int | None, str], tuple[int, str, str]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count a row."""
        if row["status"] == 200:
            self.explained += 1
        else:
            self.failed += 1
            self._count((row["status"], row["error"]), (1, row["path"], row["message"]))

    def merge(self, other: Tally) -> None:
        """Add what came of another chunk."""
        self.explained += other.explained
        self.failed += other.failed
        for kind, fault in other.faults.items():
            self._count(kind, fault)

    def _count(self, kind: tuple[int | None, str], fault: tuple[int, str, str]) -> None:
        times, *first = self.faults.get(kind, (0, *fault[1:]))
        self.faults[kind] = (times + fault[0], first[0], first[1])


class Explaining:
    """Explains chunks with a process of its own, which runs the archive's handler as a server's worker does.

    Args:
        job: what is asked.
        directory: of the unpacked archive.
        worker: the process, where one runs already.

    Raises:
        LoadError: the archive does not load.
        ToolError: the output is not where the job wrote its list.
    """

    def __init__(self, job: Job, directory: Path, worker: Worker | None = None) -> None:
        self._job = replace(job, headers={**leave_checks(directory), **job.headers})
        self._hosted = open_hosted(directory)
        self._results = Results(open_place(job.output), job.chunks)
        try:
            self._list = List(self._results.folder)
        except FileNotFoundError as error:
            raise ToolError(
                f"{job.output} is another folder here than where the job was started; all nodes must reach the same: {error}"
            ) from error
        self._reader = Reader(job.query, job.most)
        self._batch = job.batch or self._hosted.batch_size
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="camserve read")
        self._worker = worker or self._start()

    def explain(self, number: int) -> Tally:
        """Explain a chunk and write its rows; where it was done, only those pictures again that failed for no fault of theirs."""
        entries = self._list.chunk(number)
        rows: list[Row | None] = [None] * len(entries)
        before = self._results.read_chunk(number)
        if before is not None:
            kept = before[0].to_pylist()
            rows = [row if is_final(row["status"]) or before[1] == self._job.run else None for row in kept]
        wanted = [place for place, row in enumerate(rows) if row is None]
        tally = Tally(number)
        for places, batch in self._read_ahead(entries, wanted):
            for place, row in zip(places, self._explain_batch([entries[each] for each in places], batch), strict=True):
                rows[place] = row
        whole = [row for row in rows if row is not None]
        for place in wanted or range(len(rows)):
            tally.add(whole[place])
        if wanted:
            self._results.write_chunk(number, table_of(whole), self._job.run)
        return tally

    def close(self) -> None:
        """End the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._worker.end(2.0)

    def _start(self) -> Worker:
        return start_worker(self._job, self._hosted)

    def _read_ahead(
        self, entries: Sequence[Entry], wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], list[bytes | CamserveError]]]:
        """Read batch after batch, some ahead of the one that is handed out."""
        starts = iter(range(0, len(wanted), self._batch))

        def begin(start: int) -> tuple[Sequence[int], list[Future[bytes | CamserveError]]]:
            places = wanted[start : start + self._batch]
            return places, [self._threads.submit(self._reader.read, entries[place]) for place in places]

        begun = [begin(start) for start in islice(starts, 1 + max(1, READERS // self._batch))]
        while begun:
            places, batch = begun.pop(0)
            yield places, [each.result() for each in batch]
            begun += [begin(start) for start in islice(starts, 1)]

    def _explain_batch(self, entries: Sequence[Entry], batch: Sequence[bytes | CamserveError]) -> list[Row]:
        rows: dict[int, Row] = {}
        asked = []
        for place, (entry, picture) in enumerate(zip(entries, batch, strict=True)):
            if isinstance(picture, CamserveError):
                rows[place] = row_of_error(entry.name, None, picture)
            else:
                asked.append((place, entry, picture))
        for (place, entry, picture), outcome in zip(asked, self._ask(asked), strict=True):
            digest = hashlib.sha256(picture).hexdigest()
            if isinstance(outcome, CamserveError):
                rows[place] = row_of_error(entry.name, digest, outcome)
            else:
                rows[place] = row_of_answer(entry.name, digest, *outcome)
        return [rows[place] for place in range(len(entries))]

    def _ask(self, asked: Sequence[tuple[int, Entry, bytes]]) -> list[tuple[Mapping[str, Any], Measured | None] | CamserveError]:
        """Ask for a batch; what failed for no fault of the picture is asked for once more, alone."""
        requests = [make_request(self._job, picture, entry.target, entry.inside) for _, entry, picture in asked]
        outcomes = self._send(requests) if requests else []
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, CamserveError) and not is_final(outcome.status):
                (outcomes[place],) = self._send([requests[place]])
        return outcomes

    def _send(self, requests: Sequence[Asked]) -> list[tuple[Mapping[str, Any], Measured | None] | CamserveError]:
        timeout = float(self._hosted.response_timeout)
        measured: Sequence[Measured | None] | None = None
        try:
            if self._job.statistics:
                answers, measured = self._worker.measure(requests, timeout)
            else:
                answers = self._worker.ask(list(requests), timeout)
        except WorkerLostError as error:
            self._worker = self._start()
            lost = CamserveError(504 if error.late else 503, "Timeout" if error.late else "WorkerLost", str(error))
            return [lost] * len(requests)
        return [
            read_error(status, body) if status != 200 else (_read_answer(body), each)
            for (status, _, _, body), each in zip(answers, measured or [None] * len(answers), strict=True)
        ]


def start_worker(job: Job, hosted: Hosted) -> Worker:
    """Start a process that runs the archive's handler; raise LoadError where it does not load."""
    worker = Worker(hosted, 0 if job.gpu else None, make_environment(job.threads), lambda _line: None)
    worker.wait_ready()
    return worker


def open_hosted(directory: Path) -> Hosted:
    """Read an unpacked archive's settings."""
    hosted = Hosted.from_archive(read_archive(directory), "", "model", 1, {})
    return replace(hosted, startup_timeout=max(hosted.startup_timeout, PATIENCE))


def leave_checks(directory: Path) -> dict[str, str]:
    """Return the header that no heatmap is checked, of which rows have no column, where the archive would check all."""
    explain = read_archive(directory).config.get("explain") or {}
    return {CHECK: "false"} if explain.get("checks") else {}


def make_request(job: Job, picture: bytes, target: str | None = None, inside: str | None = None) -> Asked:
    """Make the request that a server's worker gets for a picture's file as the body of a POST."""
    fields = {"body": bytearray(picture)} if picture else {}
    types = {"body": {"content-type": ""}} if picture else {}
    own = {name: value for name, value in ((TARGET, target), (INSIDE, inside)) if value is not None}
    return fields, {**types, **job.headers, **own, "explain": "True"}


def try_archive(job: Job, directory: Path) -> tuple[Mapping[str, Any], Worker]:
    """Load an archive and explain a black picture.

    Returns:
        What a reference of its statistics holds for, empty where none can be made; and the process, which still runs.

    Raises:
        LoadError: it does not load.
        ToolError: it does not know the options, or its handler is not camserve's: then no picture would be explained.
    """
    hosted = open_hosted(directory)
    worker = start_worker(job, hosted)
    try:
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "PNG")
        asked = replace(job, headers={name: value for name, value in job.headers.items() if name != INSIDE})  # of other pictures
        ((status, _, _, body),) = worker.ask([make_request(asked, file.getvalue())], hosted.response_timeout)
        if status == 200:
            _read_answer(body)
        elif (error := read_error(status, body)).type in REFUSED:
            raise ToolError(f"the archive refuses what is asked: {error.message}")
        described = worker.describe(hosted.response_timeout) if job.statistics else {}
    except BaseException:
        worker.end(2.0)
        raise
    return described.get("provenance") or {}, worker


def _read_answer(body: bytes) -> Mapping[str, Any]:
    try:
        answer = read_json(body)
        fault = find_fault(answer) if isinstance(answer, dict) else "the answer"
    except ValueError:
        fault = "JSON"
    if fault is not None:
        mend = f"{command_of('package')} --from-archive makes an archive of it that explains"
        raise ToolError(f"the archive's handler is not camserve's: its answer lacks {fault}; {mend}")
    whole: Mapping[str, Any] = answer
    return whole
