"""A job from its beginning to its end: what is asked is written down, what is left is done, and what is done is joined."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from camserve.core.text import join_names, show
from camserve.core.version import __version__
from camserve.hosts.worker import LoadError, Worker, WorkerLostError
from camserve.monitoring.reference import EXAMPLES
from camserve.monitoring.reference import FILE as REFERENCE
from camserve.pipeline.loading import digest_file
from camserve.tools.archive.archive import Archive, digest_archive, open_archive
from camserve.tools.archive.trust import review
from camserve.tools.client.request import write_headers
from camserve.tools.console import Progress, ToolError
from camserve.tools.reports.dataset import engine
from camserve.tools.reports.dataset.engine import Workers
from camserve.tools.reports.dataset.explaining import Job, Tally, try_archive
from camserve.tools.reports.dataset.inputs import Columns, Listing, find_entries, write_list
from camserve.tools.reports.dataset.results import ARCHIVE, FORMAT, Results, read_manifest, write_manifest
from camserve.tools.reports.dataset.storage import Place, open_place, write_whole
from camserve.tools.reports.journal import lock

LOCK = ".camserve.lock"
IDENTITY = {
    "archive": "the archive",
    "weights": "the weights",
    "options": "the options",
    "statistics": "--no-statistics",
    "inputs": "the list of pictures",
    "chunk": "--chunk",
    "max_request_size": "--max-request-size",
}
"""What must be the same where a job goes on, by the manifest's names, with what a message calls it."""


@dataclass(frozen=True)
class Asked:
    """What a user asks for.

    Attributes:
        archive: the archive's file.
        trust: its own code may run.
        input, columns: what is explained.
        output: the folder.
        options: of each request, by the contract's names.
        chunk: pictures in a chunk.
        batch: pictures that the model gets at once; None: the archive's batchSize.
        most: bytes of a picture.
        statistics: whether they are measured.
    """

    archive: Path
    trust: bool
    input: str
    columns: Columns
    output: str
    options: Mapping[str, Any]
    chunk: int
    batch: int | None
    most: int
    statistics: bool
    workers: Workers


@dataclass
class Outcome:
    """What came of a run: pictures in all, those that were done before, what came of the others, and the seconds that took."""

    pictures: int
    before: int = 0
    tally: Tally = field(default_factory=lambda: Tally(-1))
    seconds: float = 0.0


Tell = Callable[[int, int], object]
"""Is told how many pictures are done, and of how many."""


def run(asked: Asked, progress: Progress, tell: Tell) -> Outcome:
    """Explain what is not explained yet, and join it.

    Raises:
        ToolError: it cannot be done, or the folder is another job's; the message says why.
    """
    output = open_place(asked.output)
    with ExitStack() as stack:
        if output.local is not None:
            output.local.mkdir(parents=True, exist_ok=True)
            stack.callback(lock(output.local / LOCK, "--output").close)
        archive = stack.enter_context(open_archive(asked.archive))
        if asked.archive.is_dir():
            raise ToolError(
                f"--archive {asked.archive}: expected an archive's file (.mar), which can travel to workers, got a folder"
            )
        review(asked.archive, archive, asked.trust, progress.note, runs_copies=True)
        try:
            job, manifest, worker = _settle(asked, output, archive, progress)
            if worker is not None:
                stack.callback(worker.end, 2.0)
            outcome = Outcome(manifest["pictures"])
            results = Results(output, job.chunks)
            numbers = results.find_work()
            if numbers:
                with _begin(asked, job, archive.directory, numbers, worker) as tallies:
                    _follow(tallies, asked.chunk, numbers, outcome, tell)
        except (LoadError, WorkerLostError) as error:
            raise ToolError(f"{asked.archive} does not load: {error}") from error
        outcome.before = outcome.pictures - outcome.tally.explained - outcome.tally.failed
        _join(results, manifest, output, progress)
    return outcome


def _settle(asked: Asked, output: Place, archive: Archive, progress: Progress) -> tuple[Job, dict[str, Any], Worker | None]:
    """Write down what is asked, once it is tried, or find that it was asked before; the process that tried it may go on.

    Raises:
        ToolError: something else was asked before, or the archive cannot do what is asked now.
    """
    known = read_manifest(output)
    with progress.step("List the pictures"):
        entries = find_entries(asked.input, asked.columns, progress.note)
        listing = write_list(entries, asked.chunk, output if known is None else None)
    manifest = _manifest_of(asked, archive, listing)
    job = _job_of(asked, output, listing)
    if known is None:
        with progress.step("Try the archive"):
            here = replace(job, gpu=job.gpu and not asked.workers.ray)  # a cluster's driver may have none
            manifest["provenance"], worker = try_archive(here, archive.directory)
        write_manifest(output, manifest)
        return job, manifest, worker
    differing = [name for name in IDENTITY if known.get(name) != manifest[name]]
    if differing:
        said = "; ".join(f"{IDENTITY[name]} {_differ(known.get(name), manifest[name])}" for name in differing)
        raise ToolError(
            f"{asked.output} holds the rows of another job: {said}. Go on as it was asked for, or choose another --output"
        )
    return job, known, None


def _manifest_of(asked: Asked, archive: Archive, listing: Listing) -> dict[str, Any]:
    weights = archive.file("serializedFile")
    return {
        "format": FORMAT,
        "camserve": __version__,
        "model": archive.name,
        "version": archive.version,
        "archive": digest_archive(archive, without=(REFERENCE, EXAMPLES)),
        "weights": f"sha256:{digest_file(weights)}" if weights else "",
        "options": dict(asked.options),
        "statistics": asked.statistics,
        "provenance": {},
        "input": asked.input,
        "inputs": listing.digest,
        "pictures": listing.pictures,
        "chunk": asked.chunk,
        "max_request_size": asked.most,
        "chunks": listing.chunks,
        "finished": False,
    }


def _differ(before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        return f"({join_names([f'{name} was {_shown(before.get(name))}, is {_shown(now.get(name))}' for name in names])})"
    return f"(was {_shown(before)}, is {_shown(now)})"


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return show(text[:19] if text.startswith("sha256:") else text)


def _job_of(asked: Asked, output: Place, listing: Listing) -> Job:
    workers = asked.workers
    return Job(
        output=asked.output if output.local is None else str(output),
        query=open_place(asked.input).query,
        run=uuid.uuid4().hex,
        archive=digest_file(asked.archive),
        chunks=listing.chunks,
        headers=write_headers(asked.options),
        batch=asked.batch,
        threads=workers.cores,
        gpu=workers.gpu,
        most=asked.most,
        statistics=asked.statistics,
    )


def _follow(tallies: Iterator[Tally], chunk: int, numbers: Sequence[int], outcome: Outcome, tell: Tell) -> None:
    """Count what comes of the chunks, and tell it."""
    sizes = {number: min(chunk, outcome.pictures - number * chunk) for number in numbers}
    done = outcome.pictures - sum(sizes.values())
    tell(done, outcome.pictures)
    started = time.perf_counter()
    for tally in tallies:
        outcome.tally.merge(tally)
        done += sizes[tally.number]
        tell(done, outcome.pictures)
    outcome.seconds = time.perf_counter() - started


@contextmanager
def _begin(asked: Asked, job: Job, directory: Path, numbers: list[int], first: Worker | None) -> Iterator[Iterator[Tally]]:
    if not asked.workers.ray:
        yield engine.explain_here(job, directory, numbers, asked.workers, first)
        return
    if first is not None:
        first.end()
    with write_whole(open_place(asked.output), ARCHIVE) as stream:
        stream.write(asked.archive.read_bytes())
    with engine.cluster(asked.workers) as count:
        yield engine.explain_with_ray(job, numbers, asked.workers, count)


def _join(results: Results, manifest: dict[str, Any], output: Place, progress: Progress) -> None:
    """Join what is not joined, and write down that the job has ended."""
    unjoined = results.find_unjoined()
    if unjoined:
        with progress.step("Join the rows into parts"):
            engine.join_parts(results, unjoined, lambda: None)
    if not manifest["finished"]:
        manifest["finished"] = True
        write_manifest(output, manifest)
    results.clear()
