"""Hours of the same traffic through `scripts/serve.py`: nothing may have grown, and every answer must be right."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import psutil

from benchmarks.survival.hardships import Row
from benchmarks.survival.stopping import free_port, served, stop
from benchmarks.survival.traffic import LOST, RIGHT, Outcome, Traffic, mixed, tally
from camserve.tools.serving.process.process import is_worker

MEMORY = {"serve.py": 8.0, "Java": 64.0, "worker": 24.0}
"""MiB by which a process may grow from the first quarter to the last, after warming up."""
DESCRIPTORS, THREADS = 8, 4
"""The same of each process's open file descriptors and threads."""
FOLDER, FILES = 1.0, 8
"""The same of the server's temporary folder, in MiB and files."""
LOG = 40.0
"""The same of the log, in MiB: a line a request until it is rolled over, and what is kept then."""
WARMING = 1 / 3
LEAKS = (
    "memory of the worker grew", "file descriptors of the worker grew", "threads of the worker grew",
    "size of the temporary folder grew", "files of the temporary folder grew", "answers are wrong",
)  # fmt: skip
"""What the checks must say of an archive that leaks and whose heatmaps are mirrored."""


@dataclass
class Series:
    """One figure of `owner` over time, as `look` finds it, which may grow by `limit`."""

    owner: str
    figure: str
    unit: str
    limit: float
    look: Callable[[], float]
    values: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Looks once."""
        self.values.append(self.look())

    def complaints(self, warming: float = WARMING) -> list[str]:
        """Whether it has grown."""
        before, after = ends(self.values, warming)
        if after - before <= self.limit:
            return []
        unit = self.unit if self.unit == "MiB" else ""
        return [f"{self.figure} of {self.owner} grew from {before:.0f} to {after:.0f} {unit}".strip()]

    def shown(self, warming: float = WARMING) -> str:
        """At the beginning and at the end, in words."""
        before, after = ends(self.values, warming)
        digits = 1 if self.unit == "MiB" and after < 100 else 0
        return f"{before:.{digits}f} to {after:.{digits}f} {self.unit}"


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    outcomes: Sequence[Outcome]
    series: Sequence[Series]
    complaints: Sequence[str]

    @property
    def figures(self) -> str:
        """All that was watched, by its owner."""
        owners = groupby(self.series, lambda each: each.owner.removeprefix("the "))
        return "; ".join(f"{owner} {', '.join(each.shown() for each in its)}" for owner, its in owners)


def ends(values: Sequence[float], warming: float) -> tuple[float, float]:
    """The medians of the first and the last quarter of `values`, without the share that is `warming` up."""
    steady = values[int(len(values) * warming) :]
    quarter = max(1, len(steady) // 4)
    return statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])


def soaked(store: Path, model: str, *, seconds: float, clients: int, pause: float, every: float) -> Row:
    """The same traffic for long: all stays as it was."""
    found = soak(store, model, seconds=seconds, clients=clients, pause=pause, every=every)
    return Row("soak", f"{seconds / 60:.3g} min, {clients} clients", found.outcomes, found.figures, list(found.complaints))


def control(store: Path, model: str, *, seconds: float, clients: int, every: float) -> Row:
    """The same of an archive that leaks and mirrors on purpose: what the checks do not find is to complain about."""
    found = soak(store, model, seconds=seconds, clients=clients, pause=0, every=every, least=300)
    words = " ".join(found.complaints)
    row = Row(
        "control: 1 MB, a temporary file, a descriptor and a thread leak a pass, a fifth mirrored",
        f"{seconds:g} s, {clients} clients", found.outcomes, f"found: {'; '.join(found.complaints)}",
    )  # fmt: skip
    row.complaints = [f"not found: {each}" for each in LEAKS if each not in words]
    return row


def soak(store: Path, model: str, *, seconds: float, clients: int, pause: float, every: float, least: int = 0) -> Soaked:
    """`clients` ask `scripts/serve.py` for `seconds` of this process's own time, and until `least` requests are answered; it is
    looked at `every` so many seconds, and at last ended with SIGTERM.

    Time is counted in looks, so that a process that is held meanwhile soaks as long as one that is not.
    """
    port = free_port()
    with tempfile.TemporaryFile() as output, served(store, model, port, output=output) as (url, process):
        traffic = Traffic(url, mixed(model), clients=64)
        traffic.learn()
        folder, series = watched(process.pid, lambda: store.glob(f"logs/serve-{port}.log*"))
        begun, looks, gone = time.monotonic(), 0, list[str]()
        with traffic.running(clients, pause):
            while not gone and (looks * every < seconds or len(traffic.since(begun)) < least):
                time.sleep(every)
                gone = looked(series)
                looks += 1
        outcomes = traffic.since(begun)
        stopped = stop(process)
    gone += [] if stopped.status == 0 else [f"exit status {stopped.status}"]
    gone += [f"{folder} is left behind"] if folder.exists() else []
    return Soaked(outcomes, series, [*gone, *complaints(outcomes, series)])


def watched(pid: int, log: Callable[[], Iterator[Path]]) -> tuple[Path, list[Series]]:
    """The temporary folder of the `serve.py` with this process id, and all that is watched: its processes, that folder and the
    files of its log."""
    command = psutil.Process(pid)
    (java,) = command.children()
    workers = [each for each in java.children() if is_worker(each)]
    option = "-Djava.io.tmpdir="
    folder = Path(next(word for word in java.cmdline() if word.startswith(option)).removeprefix(option))
    series = [*of_process("serve.py", "serve.py", command), *of_process("Java", "Java", java)]
    for number, worker in enumerate(workers, 1):
        series += of_process("worker", "the worker" if len(workers) == 1 else f"worker {number}", worker)
    series.append(Series("the temporary folder", "size", "MiB", FOLDER, lambda: _size(folder.rglob("*"))))
    series.append(Series("the temporary folder", "files", "files", FILES, lambda: sum(1 for _ in folder.rglob("*"))))
    series.append(Series("the log", "size", "MiB", LOG, lambda: _size(log())))
    return folder, series


def of_process(kind: str, owner: str, process: psutil.Process) -> list[Series]:
    """What is watched of a process of this kind, a key of `MEMORY`."""
    return [
        Series(owner, "memory", "MiB", MEMORY[kind], lambda: process.memory_info().rss / 2**20),
        Series(owner, "file descriptors", "descriptors", DESCRIPTORS, process.num_fds),
        Series(owner, "threads", "threads", THREADS, process.num_threads),
    ]


def _size(paths: Iterator[Path]) -> float:
    """MiB of these files; one that goes meanwhile has none."""
    size = 0
    for path in paths:
        with suppress(OSError):
            size += os.lstat(path).st_size
    return size / 2**20


def looked(series: Sequence[Series]) -> list[str]:
    """Looks once at each; a complaint when a process has ended."""
    for each in series:
        try:
            each.sample()
        except psutil.NoSuchProcess:
            return [f"{each.owner} ended"]
    return []


def complaints(outcomes: Sequence[Outcome], series: Sequence[Series]) -> list[str]:
    """All that is not as it should be: growth, and answers that are not the right ones."""
    found = [words for each in series if each.values for words in each.complaints()]
    verdicts = tally(outcomes)
    found += [f"{number} answers are {verdict}" for verdict, number in verdicts.items() if verdict not in (RIGHT, LOST)]
    found += [f"{verdicts[LOST]} requests are lost"] if verdicts[LOST] else []
    return found
