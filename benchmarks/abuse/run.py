"""Thousands of bad requests through an archive's real service: each must get a 4xx or a right 200, and change nothing.

    python benchmarks/abuse/run.py                            # 10,000 requests to a small classifier
    python benchmarks/abuse/run.py --archive model_store/NAME.mar
    python benchmarks/abuse/run.py --live                     # over HTTP, to a TorchServe of its own

A known good request rides along in each batch, and its answer is compared. What fails the run: any other status; an error that
does not have the contract's shape, or shows a path, a traceback or an address; an exception out of the service, or one that it
logs as a fault of its own; a neighbour's changed answer; memory that goes on growing; live also a worker that ends, and a forged
log line.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import platform
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import PIL
import psutil
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.support.build import PLAIN, archive
from tests.support.comparison.equality import assert_same

from benchmarks.abuse import bad_pictures, bad_requests, bad_text
from benchmarks.abuse.case import Case
from benchmarks.abuse.check import complain, watch_log
from benchmarks.abuse.live import live
from benchmarks.speed.conditions import processor
from camserve.tools.archive.archive import Response, Row, ask, load_service, open_archive

CATEGORIES = bad_pictures.CATEGORIES | bad_text.CATEGORIES | bad_requests.CATEGORIES
SMALL = {**PLAIN, "exif": True}
LIMIT = 64
"""MiB by which the process may grow in the second half: before, its threads meet the largest pictures, whose memory it keeps."""


@dataclass
class Report:
    """What came of it; each failure names the category and the number of its request."""

    statuses: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in CATEGORIES})
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    peak: float = 0
    slowest: tuple[float, str] = (0, "")
    seconds: float = 0

    @property
    def inputs(self) -> int:
        """How many bad requests were answered."""
        return sum(sum(each.values()) for each in self.statuses.values())


class InProcess:
    """An archive's service in this process, as TorchServe's worker runs it. `faults` gets what is to be reported besides."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.faults: list[str] = []

    def ask(self, cases: Sequence[Case]) -> list[Response]:
        """One batch."""
        return ask(self.service, [each.row for each in cases])

    def judge(self, sent: Case, answer: Response) -> str:
        """What is wrong with an answer; "" for nothing."""
        return complain(sent, answer)

    def memory(self) -> float:
        """The process's memory, in MiB."""
        gc.collect()
        return float(psutil.Process().memory_info().rss) / 2**20

    def peak(self) -> float:
        """The most memory that the process ever took, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def case(category: str, seed: int, number: int) -> Case:
    """The `number`-th request of a category."""
    return CATEGORIES[category](random.Random(f"{seed} {category} {number}"))


def run(service: Any, count: int, seed: int = 0, batch: int = 8, tick: Callable[[int], object] = lambda _: None) -> Report:
    """Sends `count` requests in turn, `batch - 1` and a good one at a time, to an `InProcess` or what asks and judges as it."""
    report = Report()
    good = Case(Row({"body": bytearray(bad_pictures.good_picture())}, {"X-Explain-Top-K": "2"}, explain=True), (200,))
    places = [(name, number) for number in range(-(-count // len(CATEGORIES))) for name in CATEGORIES][:count]
    started = time.perf_counter()
    with watch_log() as faults:
        (right,) = service.ask([good])
        for start in range(0, count, batch - 1):
            names = places[start : start + batch - 1]
            begun = time.perf_counter()
            _one_batch(service, names, [case(name, seed, number) for name, number in names], (good, right), report)
            took = time.perf_counter() - begun
            report.slowest = max(report.slowest, (took, ", ".join(f"{name} {number}" for name, number in names)))
            report.failures += [f"{names}: {fault}" for fault in [*faults, *service.faults]]
            faults.clear()
            service.faults.clear()
            if start * 10 // count < (start + len(names)) * 10 // count:
                report.memory.append(service.memory())
            tick(len(names))
    report.peak, report.seconds = service.peak(), time.perf_counter() - started
    return report


def _one_batch(
    service: Any, names: Sequence[tuple[str, int]], cases: Sequence[Case], known: tuple[Case, Response], report: Report
) -> None:
    good, right = known
    place = names[0][1] % (len(cases) + 1)
    sent = [*cases[:place], good, *cases[place:]]
    try:
        answers = service.ask(sent)
    except Exception as error:  # noqa: BLE001 whatever it is, it is a failure to report
        report.failures.append(f"{names}: out of the service: {error!r}")
        return
    try:
        assert_same(answers.pop(place), right)
    except AssertionError as error:
        report.failures.append(f"{names}: the good request's answer changed: {str(error)[:300]}")
    for (name, number), each, answer in zip(names, cases, answers, strict=True):
        report.statuses[name][answer.status] += 1
        wrong = service.judge(each, answer)
        if wrong:
            report.failures.append(f"{name} {number}: {wrong}")


def verdicts(report: Report) -> list[str]:
    """The failures, memory among them."""
    before, after = report.memory[(len(report.memory) - 1) // 2], report.memory[-1]
    grown = [f"memory grew from {before:.0f} to {after:.0f} MiB"] if after - before > LIMIT else []
    return report.failures + grown


def show(report: Report, console: Console) -> None:
    """The table by category in Markdown, memory, time, and the failures."""
    columns = (200, 400, 406, 413)
    table = Table("category", "requests", *map(str, columns), "others", box=box.MARKDOWN)
    for name, statuses in {**report.statuses, "all": sum(report.statuses.values(), Counter())}.items():
        others = sum(count for status, count in statuses.items() if status not in columns)
        table.add_row(name, str(sum(statuses.values())), *(str(statuses[status] or "") for status in columns), str(others or ""))
    console.print(table)
    samples = ", ".join(f"{each:.0f}" for each in report.memory)
    console.print(f"memory after each tenth: {samples} MiB (limit: {LIMIT} more in the second half), peak {report.peak:.0f} MiB")
    took, which = report.slowest
    console.print(f"{report.inputs} bad requests in {report.seconds:.0f} s; slowest batch {took:.1f} s ({which})")
    found = verdicts(report)
    for failure in found[:20]:
        console.print(f"FAILED {failure}", markup=False)
    console.print(f"{len(found)} failures")


def conditions(options: argparse.Namespace) -> str:
    """What the figures depend on."""
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, NumPy {np.__version__}"
    way = "over HTTP" if options.live else "in process"
    given = f"seed {options.seed}, batches of {options.batch}, {way}, {options.archive or 'a small classifier'}"
    return f"{date.today()}, Python {platform.python_version()}, {versions}, {psutil.cpu_count()} cores of {processor()}, {given}"


@contextlib.contextmanager
def _in_process(path: Path | None) -> Iterator[InProcess]:
    """The archive's service, or a small classifier's."""
    with contextlib.ExitStack() as stack:
        if path:
            directory = stack.enter_context(open_archive(path)).directory
        else:
            directory = archive(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "small", SMALL, classes=7)
        yield InProcess(load_service(directory))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="a .mar (default: a small classifier with a layer called features)")
    parser.add_argument("--live", action="store_true", help="over HTTP, to a TorchServe with the archive and one worker")
    parser.add_argument("--inputs", type=int, default=10_000, help="how many bad requests (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="requests of one batch, the good one included (default: 8)")
    options = parser.parse_args(argv)
    console = Console(width=130)
    console.print(conditions(options), highlight=False)
    torch.set_num_threads(2)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(
            live(options.archive, SMALL, ROOT / "config.properties") if options.live else _in_process(options.archive)
        )
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = progress.add_task("abuse", total=options.inputs)
        report = run(service, options.inputs, options.seed, options.batch, lambda count: progress.advance(task, count))
    show(report, console)
    return 1 if verdicts(report) else 0


if __name__ == "__main__":
    sys.exit(main())
