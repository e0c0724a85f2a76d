"""One archive on TorchServe, on the ASGI host and on Ray: rates, latency, processor time a request, memory, batches formed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.speed.conditions import Spread, alternate, conditions, java_version, ratios
from benchmarks.speed.served import archives
from benchmarks.speed.served.load import load, wrk_version

CONNECTIONS = 16
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

    def batches(self) -> dict[int, float]:
        """How many batches of each size were formed; TorchServe does not tell."""
        port = int(self.url.rpartition(":")[2])
        text = requests.get(f"http://127.0.0.1:{port + 2}/metrics", timeout=30).text
        return {int(size): float(count) for size, count in BATCHES.findall(text)}

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


def measure(model: str, rounds: int, seconds: float, say: Callable[[str], None], runtime: str | None = None) -> dict[str, Any]:
    """All hosts with one archive, in turns; the others are idle meanwhile.

    Args:
        model: which, see `archives.MODELS`.
        rounds: how many.
        seconds: of load on each host in a round.
        say: is told how far it is.
        runtime: what the archive is packaged for, and then without Ray; None: torch.
    """
    hosts = HOSTS if runtime is None else ("torchserve", "asgi")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Path(folder)
        say(f"{model}: packaging")
        archives.ours(store, model, None, *(() if runtime is None else ("--runtime", runtime)))
        picture = archives.photograph(store)
        say(f"{model}: starting {len(hosts)} servers")
        servers = {host: stack.enter_context(hosted(host, store, model)) for host in hosts}
        cost: dict[str, list[tuple[float, float]]] = {}
        work: dict[str, Callable[[], float]] = {}
        for host, server in servers.items():
            work[f"lone prediction on {host}"] = partial(_wait, server, model, picture, seconds)
            for words, share in (("predictions", 0.0), ("explanations", 1.0)):
                name = f"{host}, {words}"
                cost[name] = []
                work[name] = lambda name=name, server=server, share=share: _slice(  # type: ignore[misc]
                    server, model, picture, seconds, share=share, cost=cost[name]
                )
        found = alternate(work, rounds, lambda text: say(f"{model}, {text}"))
        memory = {host: server.memory() for host, server in servers.items()}
        batches = {host: servers[host].batches() for host in hosts[1:]}
    told = conditions(
        model=f"{model}, {'ImageNet' if model == archives.DEMO else 'random'} weights",
        picture="photograph, JPEG, 640 x 480",
        load=f"{wrk_version()}, one thread, {CONNECTIONS} connections, {seconds:g} s a slice, {rounds} rounds",
        server=f"one worker each, as packaged{f' for {runtime}' if runtime else ''} and by config.properties; monitoring on",
        java=java_version(),
    )
    rates = {name: Spread.of(values).__dict__ for name, values in found.items()}
    for place, words in enumerate(("processor ms a request", "processor ms a request outside of the worker")):
        rates |= {f"{name}: {words}": Spread.of([each[place] for each in values[1:]]).__dict__ for name, values in cost.items()}
    rates |= {f"{host}: memory, MiB": Spread.of([value]).__dict__ for host, value in memory.items()}
    for host, formed in batches.items():
        mean = sum(size * count for size, count in formed.items()) / sum(formed.values())
        rates[f"{host}: requests in a batch, mean"] = Spread.of([mean]).__dict__
    return {"conditions": told, "rows": _rows(hosts, found, cost, memory), "rates": rates}


def _wait(server: Hosted, model: str, picture: Path, seconds: float) -> float:
    """Seconds that a lone client waits for a prediction, the median."""
    return load(server.url, model, picture, seconds=seconds, connections=1).p50


def _slice(server: Hosted, model: str, picture: Path, seconds: float, *, share: float, cost: list[tuple[float, float]]) -> float:
    """Answers a second; adds to `cost` the milliseconds of processor time that a request took, and those of the host itself."""
    before = server.used()
    done = load(server.url, model, picture, seconds=seconds, share=share, connections=CONNECTIONS)
    spent, own = (1000 * (after - first) / done.requests for after, first in zip(server.used(), before, strict=True))
    cost.append((spent, own))
    return done.rate


def _rows(
    hosts: Sequence[str], found: dict[str, list[float]], cost: dict[str, list[tuple[float, float]]], memory: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for host in hosts[1:]:
        name = NAMES[host]
        for words in ("predictions", "explanations"):
            ours, theirs = f"{host}, {words}", f"torchserve, {words}"
            rows.append((f"{name}'s {words}/s over TorchServe's", ratios(found[ours], found[theirs]), LEAST[host], "least"))
            used = ratios(*([spent for spent, _ in cost[each][1:]] for each in (ours, theirs)))
            if host == "asgi":
                rows.append((f"{name}'s processor time a request over TorchServe's, {words}", used, 0.9, "most"))
        waits = ratios(*(found[f"lone prediction on {each}"] for each in (host, "torchserve")))
        rows.append((f"{name}'s latency of a lone prediction over TorchServe's", waits, 1.0, "most"))
    rows.append(("ASGI's memory over TorchServe's", [memory["asgi"] / memory["torchserve"]], 0.75, "most"))
    return [{"what": what, "goal": goal, "side": side, **Spread.of(values).__dict__} for what, values, goal, side in rows]
