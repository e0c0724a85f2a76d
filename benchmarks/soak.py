"""Hours of the same traffic: memory and file descriptors must stay where they were, and every answer right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil
from benchmarks.traffic import LOST, RIGHT, Outcome, Traffic, tally

from camserve.tools.server.server import Server

MEMORY = {"worker": 24.0, "Java": 64.0}
"""MiB by which a process may grow from the first quarter to the last, after warming up."""
DESCRIPTORS = 8
WARMING = 1 / 3


@dataclass
class Series:
    """One process over time: resident memory in MiB, and open file descriptors."""

    name: str
    process: psutil.Process
    memory: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self) -> None:
        """Looks once."""
        self.memory.append(self.process.memory_info().rss / 2**20)
        self.descriptors.append(self.process.num_fds())

    def complaints(self, warming: float = WARMING) -> list[str]:
        """What has grown."""
        found = []
        before, after = ends(self.memory, warming)
        if after - before > MEMORY[self.name]:
            found.append(f"memory of the {self.name} grew from {before:.0f} to {after:.0f} MiB")
        few, many = ends(self.descriptors, warming)
        if many - few > DESCRIPTORS:
            found.append(f"file descriptors of the {self.name} grew from {few:.0f} to {many:.0f}")
        return found

    def shown(self, warming: float = WARMING) -> str:
        """Both, at the beginning and at the end, in words."""
        before, after = ends(self.memory, warming)
        few, many = ends(self.descriptors, warming)
        return f"{self.name} {before:.0f} to {after:.0f} MiB, {few:.0f} to {many:.0f} descriptors"


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    outcomes: Sequence[Outcome]
    series: Sequence[Series]
    seconds: float
    complaints: Sequence[str]


def ends(values: Sequence[float], warming: float) -> tuple[float, float]:
    """The medians of the first and the last quarter of `values`, without the share that is `warming` up."""
    steady = values[int(len(values) * warming) :]
    quarter = max(1, len(steady) // 4)
    return statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])


def watched(server: Server) -> list[Series]:
    """Java and the first worker of a server."""
    java, *workers = (psutil.Process(pid) for pid in server.pids)
    return [Series("Java", java), Series("worker", workers[0])]


def soak(
    server: Server,
    traffic: Traffic,
    *,
    seconds: float,
    clients: int,
    pause: float,
    every: float = 5,
    least: int = 0,
    tick: Callable[[int], object] = lambda _: None,
) -> Soaked:
    """`clients` ask for `seconds` of the process's own time, and until `least` requests are answered; memory and descriptors are
    looked at `every` so many seconds.

    Time is counted in looks, so that a process that is held meanwhile soaks as long as one that is not.
    """
    series = watched(server)
    begun = time.monotonic()
    with traffic.running(clients, pause):
        looks = 0
        while looks * every < seconds or len(traffic.since(begun)) < least:
            time.sleep(every)
            for each in series:
                each.sample()
            looks += 1
            tick(looks)
    outcomes = traffic.since(begun)
    return Soaked(outcomes, series, seconds, complaints(outcomes, series))


def complaints(outcomes: Sequence[Outcome], series: Sequence[Series]) -> list[str]:
    """All that is not as it should be: growth, and answers that are not the right ones."""
    found = [words for each in series for words in each.complaints()]
    verdicts = tally(outcomes)
    found += [f"{number} answers are {verdict}" for verdict, number in verdicts.items() if verdict not in (RIGHT, LOST)]
    found += [f"{verdicts[LOST]} requests are lost"] if verdicts[LOST] else []
    return found
