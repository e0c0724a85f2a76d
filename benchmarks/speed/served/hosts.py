"""One archive on TorchServe, on the ASGI host and on Ray: rates, latency, processor time a request, memory, batches formed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.speed.conditions import Spread, alternate, conditions, java_version, ratios
from benchmarks.speed.served import archives
from benchmarks.speed.served.load import load, wrk_version

CONNECTIONS = 16
STARTS = 3
"""Of each server."""
NAMES = {"asgi": "ASGI", "ray": "Ray"}
LEAST = {"asgi": 1.1, "ray": 0.9}
"""Answers a second, of TorchServe's."""
RAY = archives.ROOT / ".venv-ray" / "bin" / "python"
HOSTS = ("torchserve", "asgi", *(("ray",) if RAY.exists() else ()))
WORKERS = ("model_service_worker", "hosts/child")
"""What runs the model, by a part of its command line: the rest is the host's own."""
BATCHES = re.compile(r'^camserve_host_batches_total\{[^}]*size="(\d+)"[^}]*\} (\S+)', re.MULTILINE)


class Hosted:
    """A server in a process of its own, started as users do."""

    def __init__(self, host: str, store: Path, model: str) -> None:
        python = str(RAY) if host == "ray" else sys.executable
        command = [python, "scripts/serve.py", "--host", host, "--model-store", str(store), "--models", model]
        command += ["--port", "0", "--log-dir", str(store)]
        self.process = subprocess.Popen(command, cwd=archives.ROOT, stdout=subprocess.PIPE, text=True)
        self.url = ""
        for line in self.process.stdout or ():
            if line.startswith("ready "):
                self.url = line.split()[1]
                break
        if not self.url:
            raise RuntimeError(f"the host {host} does not start")

    def processes(self) -> list[psutil.Process]:
        """The command's own process and all below it."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def used(self) -> tuple[float, float]:
        """Processor seconds so far: of all processes, and of those that do not run the model."""
        spent = {each: sum(each.cpu_times()[:2]) for each in self.processes()}
        own = [each for each in spent if not any(part in " ".join(each.cmdline()) for part in WORKERS)]
        return sum(spent.values()), sum(spent[each] for each in own)

    def memory(self) -> float:
        """MiB, what is shared counted once."""
        return sum(each.memory_full_info().pss for each in self.processes()) / 2**20

    def batches(self) -> Counter[int]:
        """How many batches of each size were formed; TorchServe does not tell."""
        port = int(self.url.rpartition(":")[2])
        text = requests.get(f"http://127.0.0.1:{port + 2}/metrics", timeout=30).text
        return Counter({int(size): int(float(count)) for size, count in BATCHES.findall(text)})

    def stop(self) -> None:
        """Ends it as a user would."""
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def hosted(host: str, store: Path, model: str) -> Iterator[Hosted]:
    """A running host."""
    server = Hosted(host, store, model)
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Found:
    """What was measured, by host and load: answers a second or seconds a round, milliseconds of processor time a request (of all
    processes, and of the host's own), MiB a start, and how many batches of each size were formed."""

    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cost: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    batches: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))


def measure(model: str, rounds: int, seconds: float, say: Callable[[str], None], runtime: str | None = None) -> dict[str, Any]:
    """All hosts with one archive, in turns; the others are idle meanwhile.

    They are started anew for each third of the rounds: two starts of one server differ by more than two hosts do.

    Args:
        model: which, see `archives.MODELS`.
        rounds: how many, of all starts together.
        seconds: of load on each host in a round.
        say: is told how far it is.
        runtime: what the archive is packaged for, and then without Ray; None: torch.
    """
    hosts = HOSTS if runtime is None else ("torchserve", "asgi")
    found, starts = Found(), min(STARTS, rounds)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        say(f"{model}: packaging")
        archives.ours(store, model, None, *(() if runtime is None else ("--runtime", runtime)))
        picture = archives.photograph(store)
        trial = Trial(hosts, store, model, picture, seconds, say)
        for start in range(starts):
            say(f"{model}: start {start + 1} of {starts} of {len(hosts)} servers")
            trial.add_start(found, len(range(start, rounds, starts)))
    told = conditions(
        model=f"{model}, {'ImageNet' if model == archives.DEMO else 'random'} weights",
        picture="photograph, JPEG, 640 x 480",
        load=f"{wrk_version()}, one thread, {CONNECTIONS} connections, {seconds:g} s a slice, {rounds} rounds in {starts} starts",
        server=f"one worker each, as packaged{f' for {runtime}' if runtime else ''} and by config.properties; monitoring on",
        java=java_version(),
    )
    rates = {name: Spread.of(values).__dict__ for name, values in found.rates.items()}
    for place, words in enumerate(("processor ms a request", "processor ms a request outside of the worker")):
        rates |= {f"{name}: {words}": Spread.of([each[place] for each in values]).__dict__ for name, values in found.cost.items()}
    rates |= {f"{host}: memory, MiB": Spread.of(values).__dict__ for host, values in found.memory.items()}
    for host, formed in found.batches.items():
        mean = sum(size * count for size, count in formed.items()) / sum(formed.values())
        rates[f"{host}: requests in a batch, mean"] = Spread.of([mean]).__dict__
    return {"conditions": told, "rows": _rows(hosts, found), "rates": rates}


@dataclass(frozen=True)
class Trial:
    """What is asked of which hosts."""

    hosts: Sequence[str]
    store: Path
    model: str
    picture: Path
    seconds: float
    say: Callable[[str], None]

    def add_start(self, found: Found, rounds: int) -> None:
        """Starts all hosts, and adds what so many rounds give."""
        with ExitStack() as stack:
            servers = {host: stack.enter_context(hosted(host, self.store, self.model)) for host in self.hosts}
            cost: dict[str, list[tuple[float, float]]] = {}
            work: dict[str, Callable[[], float]] = {}
            for host, server in servers.items():
                work[f"lone prediction on {host}"] = partial(self._wait, server)
                for words, share in (("predictions", 0.0), ("explanations", 1.0)):
                    name = f"{host}, {words}"
                    cost[name] = []
                    batches = None if host == "torchserve" else found.batches[host]
                    work[name] = partial(self._load, server, share, cost[name], batches)
            for name, values in alternate(work, rounds, lambda text: self.say(f"{self.model}, {text}")).items():
                found.rates[name] += values
            for name, spent in cost.items():
                found.cost[name] += spent[1:]  # the first is of the warm-up
            for host, server in servers.items():
                found.memory[host].append(server.memory())

    def _wait(self, server: Hosted) -> float:
        """Seconds that a lone client waits for a prediction, the median."""
        return load(server.url, self.model, self.picture, seconds=self.seconds, connections=1).p50

    def _load(self, server: Hosted, share: float, cost: list[tuple[float, float]], batches: Counter[int] | None) -> float:
        """Answers a second; adds to `cost` the milliseconds of processor time of a request, and those of the host itself, and to
        `batches` what was formed."""
        before = server.used()
        formed = Counter() if batches is None else server.batches()
        done = load(server.url, self.model, self.picture, seconds=self.seconds, share=share, connections=CONNECTIONS)
        spent, own = (1000 * (after - first) / done.requests for after, first in zip(server.used(), before, strict=True))
        cost.append((spent, own))
        if batches is not None:
            batches.update(server.batches() - formed)
        return done.rate


def _rows(hosts: Sequence[str], found: Found) -> list[dict[str, Any]]:
    rows = []
    for host in hosts[1:]:
        name = NAMES[host]
        for words in ("predictions", "explanations"):
            ours, theirs = f"{host}, {words}", f"torchserve, {words}"
            rows.append(
                (f"{name}'s {words}/s over TorchServe's", ratios(found.rates[ours], found.rates[theirs]), LEAST[host], "least")
            )
            used = ratios(*([spent for spent, _ in found.cost[each]] for each in (ours, theirs)))
            if host == "asgi":
                rows.append((f"{name}'s processor time a request over TorchServe's, {words}", used, 0.9, "most"))
        waits = ratios(*(found.rates[f"lone prediction on {each}"] for each in (host, "torchserve")))
        rows.append((f"{name}'s latency of a lone prediction over TorchServe's", waits, 1.0, "most"))
    memory = ratios(found.memory["asgi"], found.memory["torchserve"])
    rows.append(("ASGI's memory over TorchServe's", memory, 0.75, "most"))
    return [{"what": what, "goal": goal, "side": side, **Spread.of(values).__dict__} for what, values, goal, side in rows]
