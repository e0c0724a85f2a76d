"""A real server under everything that goes wrong in production; each answer must be the one that the request gets alone.

    python benchmarks/survival/run.py --demo model_store/efficientnet_lite0.mar
    python benchmarks/survival/run.py --demo model_store/efficientnet_lite0.mar --only soak --soak 1800
    python benchmarks/survival/run.py --demo model_store/efficientnet_lite0.mar --host asgi

Faults that a real model can meet are tried with the archive of --demo, those that need a model which misbehaves on purpose with
the tests' small classifier. What is not answered rightly must be excused by its fault: only requests in progress on a worker that
ends may fail, only a full queue may refuse. The soak ends with a control: leaks and mirrored heatmaps put in on purpose must be
found by the same checks.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from tests.support.build import encoded

from benchmarks.speed.conditions import processor
from benchmarks.survival import archives, bad_clients, evidence, hardships, overload, soak, stopping
from benchmarks.survival.hardships import Row
from benchmarks.survival.stopping import Started
from benchmarks.survival.traffic import FAILED, LOST, REFUSED, RIGHT, WRONG, Ask, Served, Traffic, mixed, tally, wait_until
from camserve.tools.serving.configuration import advice
from camserve.tools.serving.server import Server

CONFIG = ROOT / "config.properties"
COMMON = "common"


@dataclass(frozen=True)
class Size:
    """How long and how hard: seconds of a fault, clients, kills, seconds between two, rounds of bad clients, requests at once,
    how many times more of them than can be answered, the queue, seconds of the soak, of its control and between two looks, and
    places where there is no room for the log."""

    seconds: float = 30
    clients: int = 8
    kills: int = 6
    every: float = 5
    rounds: int = 5
    burst: int = 40
    times: float = 10
    queue: int = 100
    soak: float = 1800
    control: float = 60
    look: float = 5
    logs: int = 3


QUICK = Size(seconds=3, clients=4, kills=1, every=1, rounds=1, times=4, queue=20, soak=4, control=4, look=0.2, logs=1)
"""The form that the tests run."""


class Trial(ExitStack):
    """Runs the faults with archives in `store`; `demo` is a real archive, or None.

    Faults after which a server must be as before share one; the others have one of their own. Leaving ends them.
    """

    def __init__(self, store: Path, size: Size, demo: Path | None = None, host: str = "torchserve") -> None:
        super().__init__()
        self.host = host
        self.store = store
        self.size = size
        self.demo = demo
        self._shared: tuple[Served, Traffic] | None = None

    def killed(self) -> Row:
        """Workers that get SIGKILL."""
        size = self.size
        with self._served("killed", minWorkers=2, maxWorkers=2, batchSize=archives.BATCH) as (server, traffic):
            return hardships.killed(
                server, traffic, kills=size.kills, every=size.every, clients=size.clients, batch=archives.BATCH, count=2,
                forgets=self.host == "torchserve",
            )  # fmt: skip

    def overloaded(self) -> Row:
        """More requests than can be answered."""
        size, batch = self.size, 8 if self.demo else archives.BATCH
        fault = "" if self.demo else archives.SLOW
        with self._served("overloaded", fault, jobQueueSize=size.queue, batchSize=batch) as (_, traffic):
            return overload.overloaded(
                traffic, seconds=size.seconds, times=size.times, queue=size.queue, batch=batch, clients=size.clients
            )

    def crammed(self) -> Row:
        """More large requests than the queue takes: as many as the server's setting says, in a heap without a warning."""
        size, clients = self.size, self.size.queue + archives.BATCH + 12
        heap = advice.required_heap(size.queue) // 2**20
        config = self._configured("crammed", f"job_queue_size={size.queue}", f"vmargs=-Xmx{heap}m")
        with self._small("crammed", archives.SLOW, config=config) as (server, _):
            traffic = Traffic(server.url, archives.large(self._name("crammed")), clients)
            traffic.learn()
            return overload.crammed(
                server, traffic, seconds=size.seconds, clients=clients, queue=size.queue, batch=archives.BATCH, heap=heap
            )

    def annoyed(self) -> Row:
        """Slow and broken clients."""
        size = self.size
        server, traffic = self._common()
        at_once = len(bad_clients.CLIENTS)
        return bad_clients.annoyed(server, traffic, model=COMMON, rounds=size.rounds, at_once=at_once, clients=size.clients)

    def starved(self) -> Row:
        """Memory that runs out: of the small classifier, because a large one has freed memory enough for any picture."""
        size = self.size
        with ExitStack() as own:
            server, traffic = self._common() if self.demo is None else own.enter_context(self._small("starved"))
            big = Ask(traffic.asks[-1].path, bytes(encoded(Image.new("RGB", (7000, 7000), (90, 120, 40)))))
            return hardships.starved(server, traffic, room=64, seconds=size.seconds, clients=size.clients, big=big)

    def poisoned(self) -> Row:
        """A CUDA context that is broken for good."""
        size = self.size
        with self._small("poisoned", archives.POISONED) as (server, traffic):
            return hardships.poisoned(
                server, traffic, times=-(-size.kills // 2), every=size.every, clients=size.clients, batch=archives.BATCH,
                model=self._name("poisoned"),
            )  # fmt: skip

    def hung(self) -> Row:
        """A forward pass that never ends."""
        size = self.size
        with self._small("hung", archives.HUNG, responseTimeout=archives.PATIENCE) as (server, traffic):
            return hardships.hung(
                server, traffic, times=-(-size.kills // 2), every=size.every, clients=size.clients, batch=archives.BATCH,
                model=self._name("hung"), patience=archives.PATIENCE,
            )  # fmt: skip

    def replaced(self) -> Row:
        """A new version under load."""
        size, name = self.size, self._name("replaced")
        later = archives.small(self.store, name, version="2.0", seed=1)
        config = self._configured("replaced", "enable_model_api=true")
        with self._small("replaced", config=config) as (server, traffic):
            return hardships.replaced(server, traffic, model=name, file=later.name, seconds=size.seconds, clients=size.clients)

    def stopped(self) -> Row:
        """SIGTERM with requests in progress."""
        archives.small(self.store, "stopped", archives.SLOW)
        return stopping.stopped(self.store, "stopped", count=self.size.burst, host=self.host)

    def continued(self) -> Row:
        """SIGTERM while requests go on coming."""
        size = self.size
        archives.small(self.store, "continued", archives.SLOW)
        return stopping.continued(
            self.store,
            "continued",
            seconds=size.seconds / 3,
            clients=size.clients,
            drain=max(2, size.seconds / 3),
            host=self.host,
        )

    def full_disk(self) -> Row:
        """No room for the log."""
        archives.small(self.store, "full", archives.SLOW)
        return stopping.full_disk(
            self.store, "full", seconds=self.size.seconds / 3, clients=self.size.clients, places=self.size.logs,
            count=self.size.burst, host=self.host,
        )  # fmt: skip

    def evidence_killed(self) -> Row:
        """Workers that keep evidence get SIGKILL."""
        size = self.size
        with self._keeping("evidence-killed", minWorkers=2, maxWorkers=2) as (server, traffic, kept):
            return evidence.killed(server, traffic, kept, kills=size.kills, every=size.every, clients=size.clients)

    def evidence_full(self) -> Row:
        """The disk of the evidence is full, and then has room again."""
        size = self.size
        with evidence.small_disk(self.store.parent) as disk, self._keeping("evidence-full", disk.place) as found:
            return evidence.full(*found, disk, seconds=size.seconds, clients=size.clients)

    def evidence_unreachable(self) -> Row:
        """Evidence goes to stores that refuse, or say nothing."""
        size = self.size
        rows = []
        with evidence.dead_stores() as places:
            for name, place in places.items():
                with self._keeping(f"evidence-{name}", place) as (server, traffic, _):
                    rows.append(evidence.unreachable(server, traffic, seconds=size.seconds / 2, clients=size.clients))
        return evidence.together(rows, ", ".join(places))

    def evidence_bounds(self) -> Row:
        """As many requests as can be answered, of which all are worth keeping, within small bounds."""
        size = self.size
        with self._keeping("evidence-bounds", minWorkers=2, maxWorkers=2) as (server, traffic, kept):
            return evidence.bounded(server, traffic, kept, seconds=size.seconds, clients=size.clients)

    @contextmanager
    def _keeping(self, name: str, place: Path | str | None = None, **settings: int) -> Iterator[evidence.Found]:
        """A server with the small classifier, which keeps what it can, and where that lies."""
        place = place or self.store.parent / name
        archives.small(self.store, name, settings=settings, explain=evidence.ask(place))
        with self._ready(name) as (server, traffic):
            yield server, traffic, Path(place)
            running = set(server.pids)
        wait_until(lambda: running.isdisjoint(psutil.pids()), "all workers gone: they may write to the last")

    def lost_node(self) -> Row:
        """A node of a Ray cluster that is gone at once."""
        archives.small(self.store, "node")
        return stopping.lost_node(self.store / "node.mar", seconds=self.size.seconds / 2)

    def soaked(self) -> Row:
        """The same traffic for long."""
        size = self.size
        self._made("soak")
        pause = 0.2 if self.demo else 0
        return soak.soaked(self.store, "soak", seconds=size.soak, clients=2, pause=pause, every=size.look)

    def control(self) -> Row:
        """Leaks and mirrored heatmaps, put in on purpose: the checks of the soak must find them."""
        archives.small(self.store, "control", archives.LEAKY + archives.MIRRORED)
        return soak.control(self.store, "control", seconds=self.size.control, clients=2, every=self.size.look)

    def _configured(self, name: str, *lines: str) -> Path:
        """The repository's configuration with other settings; of two for a key the last counts."""
        config = self.store.parent / f"{name}.properties"
        config.write_text("\n".join([CONFIG.read_text(), *lines, ""]))
        return config

    def _name(self, fault: str) -> str:
        """The model that a fault is tried with."""
        return fault

    def _common(self) -> tuple[Served, Traffic]:
        if self._shared is None:
            self._shared = self.enter_context(self._served(COMMON))
        return self._shared

    def _made(self, name: str, fault: str = "", **settings: int) -> None:
        """The real archive under this name, or the small classifier where there is none."""
        if self.demo is None:
            archives.small(self.store, name, fault, settings)
        else:
            archives.variant(self.demo, self.store / f"{name}.mar", settings)

    @contextmanager
    def _served(self, name: str, fault: str = "", **settings: int) -> Iterator[tuple[Served, Traffic]]:
        """A server with that archive."""
        self._made(name, fault, **settings)
        with self._ready(name) as found:
            yield found

    @contextmanager
    def _small(self, name: str, fault: str = "", config: Path = CONFIG, **settings: int) -> Iterator[tuple[Served, Traffic]]:
        archives.small(self.store, name, fault, settings)
        with self._ready(name, config) as found:
            yield found

    @contextmanager
    def _ready(self, name: str, config: Path = CONFIG) -> Iterator[tuple[Served, Traffic]]:
        with ExitStack() as stack:
            if self.host == "torchserve":
                server: Served = stack.enter_context(Server(self.store, [name], config=config))
            else:
                server = stack.enter_context(Started(self.store, name, config, self.host))
            traffic = Traffic(server.url, mixed(name), clients=64)
            traffic.learn()
            yield server, traffic


FAULTS: dict[str, Callable[[Trial], Row]] = {
    "killed": Trial.killed,
    "overloaded": Trial.overloaded,
    "crammed": Trial.crammed,
    "annoyed": Trial.annoyed,
    "starved": Trial.starved,
    "poisoned": Trial.poisoned,
    "hung": Trial.hung,
    "replaced": Trial.replaced,
    "stopped": Trial.stopped,
    "continued": Trial.continued,
    "full_disk": Trial.full_disk,
    "evidence_killed": Trial.evidence_killed,
    "evidence_full": Trial.evidence_full,
    "evidence_unreachable": Trial.evidence_unreachable,
    "evidence_bounds": Trial.evidence_bounds,
    "node": Trial.lost_node,
    "soak": Trial.soaked,
    "control": Trial.control,
}
"""What can be tried, in this order."""
OF_TORCHSERVE = ("crammed", "soak", "control")
"""Those that look into Java's heap or its processes."""
HOSTS = {"torchserve": "TorchServe 0.12.0", "asgi": "the ASGI host", "ray": "Ray Serve"}
NOT_ON = {"torchserve": ("node",), "asgi": (*OF_TORCHSERVE, "node"), "ray": (*OF_TORCHSERVE, "replaced", "full_disk", "annoyed")}
"""What makes no sense of a host, or is tried of Ray in `tests/hosts/ray`."""


def table(rows: Sequence[Row]) -> Table:
    """One line for each fault."""
    made = Table("fault", "conditions", "requests", RIGHT, WRONG, REFUSED, FAILED, LOST, "besides", show_lines=True)
    for row in rows:
        verdicts = tally(row.outcomes)
        counts = (str(verdicts[each] or 0) for each in (RIGHT, WRONG, REFUSED, FAILED, LOST))
        besides = "\n".join([row.figures, *(f"FAILED {each}" for each in row.complaints + row.late)]).strip()
        made.add_row(row.fault, row.conditions, str(len(row.outcomes)), *counts, besides)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, metavar="MAR", help="a real archive (default: the tests' small classifier)")
    parser.add_argument("--host", choices=HOSTS, default="torchserve", help="default: torchserve")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="which faults (default: all of the host)")
    parser.add_argument("--seconds", type=float, default=Size.seconds, help="of each fault (default: 30)")
    parser.add_argument("--soak", type=float, default=Size.soak, metavar="SECONDS", help="of the soak (default: 1800)")
    options = parser.parse_args(argv)
    chosen = options.only or [each for each in FAULTS if each not in NOT_ON[options.host]]
    size = Size(seconds=options.seconds, soak=options.soak)
    console, progress = Console(width=200), Console(stderr=True)
    print(conditions(options))
    rows = []
    with tempfile.TemporaryDirectory(prefix="survival-") as folder:
        store = Path(folder, "store")
        store.mkdir()
        with Trial(store, size, options.demo, options.host) as trial:
            for name in chosen:
                begun = time.monotonic()
                with progress.status(name):
                    rows.append(FAULTS[name](trial))
                progress.print(
                    f"{name}: {time.monotonic() - begun:.0f} s", *rows[-1].complaints, *rows[-1].late, sep="\n  ", markup=False
                )
                if rows[-1].complaints:
                    progress.print(*find_tracebacks(store.parent), sep="\n", markup=False)
    console.print(table(rows), markup=False)
    bad = sum(bool(row.complaints or row.late) for row in rows)
    print("nothing was lost that should not be" if not bad else f"{bad} faults did damage that they should not, or took too long")
    return 1 if bad else 0


def find_tracebacks(folder: Path, most: int = 3) -> list[str]:
    """The last tracebacks in the logs of the servers that `stopping.Started` started."""
    logs = "\n".join(log.read_text("utf-8", "replace") for log in sorted(folder.glob("*.log")))
    pattern = r"^.*Traceback \(most recent call last\):\n(?:.*\n)*?(?:\[\S+\] )?[\w.]*(?:Error|Exception)\b.*"
    return re.findall(pattern, logs, re.MULTILINE)[-most:]


def conditions(options: argparse.Namespace) -> str:
    """What the figures depend on."""
    model = options.demo.name if options.demo else "the tests' small classifier"
    machine = f"{psutil.cpu_count()} cores of {processor()}, load {os.getloadavg()[0]:.1f} when it began"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{date.today()}, {versions}, {HOSTS[options.host]}, {machine}, {model}"


if __name__ == "__main__":
    sys.exit(main())
