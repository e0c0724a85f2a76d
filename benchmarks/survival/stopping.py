"""`scripts/serve.py` as its users start it: stopped with requests in progress, and with no room for its log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import psutil
import requests

from benchmarks.survival.hardships import Row, all_again
from benchmarks.survival.traffic import FAILED, LOST, REFUSED, RIGHT, Outcome, Traffic, good, mixed, wait_until
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.health.management import Management

ROOT = Path(__file__).resolve().parents[2]
RAY = ROOT / ".venv-ray" / "bin" / "python"
FULL = Path("/dev/full")
LATEST = 5.0
"""Seconds in which a request that was lost with its node must have its error."""
PAUSE = 0.01
"""Seconds that a client waits between an answer and its next request."""


@dataclass(frozen=True)
class Stop:
    """A SIGTERM: the moment of it by `time.monotonic`, the exit status that followed, and after how many seconds."""

    moment: float
    status: int
    seconds: float

    def in_progress(self, outcomes: Iterable[Outcome]) -> int:
        """How many requests began before the signal and ended after it."""
        return sum(each.begun < self.moment < each.ended for each in outcomes)

    def complaints(self, outcomes: Iterable[Outcome]) -> list[str]:
        """Whether none did, so that the stop has shown nothing."""
        return [] if self.in_progress(outcomes) else ["nothing was in progress"]


def stop(process: subprocess.Popen[bytes], limit: float = 180) -> Stop:
    """Sends SIGTERM, and waits for the end."""
    moment = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(limit)
    return Stop(moment, status, time.monotonic() - moment)


def free_port() -> int:
    """A port that is free, with the two above it."""
    return Addresses.choose(Settings.read(None), 0).http[0][2]


@contextlib.contextmanager
def served(
    store: Path, model: str, port: int, *arguments: str, output: IO[bytes]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`scripts/serve.py`, ready; its URL, and its process, which is ended on leaving."""
    python = str(RAY) if "ray" in arguments else sys.executable
    command = [python, str(ROOT / "scripts" / "serve.py"), "--model-store", str(store), "--models", model]
    command += ["--config", str(ROOT / "config.properties"), "--port", str(port), "--drain", "120", *arguments]
    process = subprocess.Popen(command, stdout=output, stderr=output, cwd=store)
    management = Management(f"http://127.0.0.1:{port + 1}")

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"serve.py ended with {process.returncode}")
        models = management.fetch_models() or []
        return bool(models) and all(each["status"] == "READY" for each in models[0]["workers"])

    try:
        wait_until(ready, "ready")
        yield f"http://127.0.0.1:{port}", process
    finally:
        management.close()
        if process.poll() is None and "ray" in arguments:
            process.terminate()
        elif process.poll() is None:
            process.kill()  # takes Java and the workers with it
        process.wait()


class Started(contextlib.ExitStack):
    """`scripts/serve.py --host asgi` or `ray` with one model."""

    def __init__(self, store: Path, model: str, config: Path, host: str) -> None:
        super().__init__()
        port = free_port()
        output = self.enter_context((store.parent / f"{model}.log").open("ab"))
        more = ("--host", host, "--config", str(config), "--log-dir", "-")
        self.url, self._process = self.enter_context(served(store, model, port, *more, output=output))
        self.management_url = f"http://127.0.0.1:{port + 1}"

    @property
    def pids(self) -> list[int]:
        """The server's process id, then those of its workers."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [self._process.pid, *(each.pid for each in children)]


def stopped(store: Path, model: str, *, count: int, host: str = "torchserve") -> Row:
    """SIGTERM with all of the requests in the worker and in its queue: each gets its answer, and the exit status is 0."""
    more = ("--host", host, "--log-dir", "-")
    with tempfile.TemporaryFile() as output, served(store, model, free_port(), *more, output=output) as (url, process):
        traffic = Traffic(url, mixed(model), clients=count)
        traffic.learn()
        sent, ended = _ended(traffic, process, count)
    row = Row(
        "SIGTERM with requests in progress", f"{count} requests at once, in one worker and its queue", sent,
        f"exit status {ended.status}, {ended.seconds:.1f} s after the signal, when {ended.in_progress(sent)} were open",
    ).allow()  # fmt: skip
    row.complaints += ended.complaints(sent) + ([] if ended.status == 0 else [f"exit status {ended.status}"])
    return row


def continued(store: Path, model: str, *, seconds: float, clients: int, drain: float, host: str = "torchserve") -> Row:
    """SIGTERM while clients go on asking, over connections that they keep and over new ones: what was sent before is answered."""
    limit = ("--host", host, "--log-dir", "-", "--drain", str(drain))
    with tempfile.TemporaryFile() as output, served(store, model, free_port(), *limit, output=output) as (url, process):
        kept, fresh = (Traffic(url, good(model), clients, keep=keep) for keep in (True, False))
        kept.learn()
        fresh.adopt(kept)
        begun = time.monotonic()
        with kept.running(clients, PAUSE), fresh.running(clients, PAUSE):
            time.sleep(seconds)
            ended = stop(process, drain + 120)
    outcomes = [each for traffic in (kept, fresh) for each in traffic.since(begun) if not each.unsent]
    cut = {name: _lost(traffic.since(ended.moment)) for name, traffic in (("kept", kept), ("new", fresh))}
    answered = sum(each.begun >= ended.moment and each.verdict == RIGHT for each in outcomes)
    row = Row(
        "SIGTERM while requests go on coming",
        f"{clients} clients that keep their connections and {clients} that do not, --drain {drain:g}",
        outcomes,
        f"exit status {ended.status}, {ended.seconds:.1f} s after the signal, when {ended.in_progress(outcomes)} were open; of "
        f"those sent later {answered} were answered, and no answer came to {cut['kept']} over kept connections and to "
        f"{cut['new']} over new ones",
    ).allow(LOST, *((REFUSED,) if host == "ray" else ()))  # fmt: skip; Ray's proxy listens until it ends
    before = [each for each in outcomes if each.begun < ended.moment]
    row.complaints += [f"sent before the signal: {each.words}" for each in before if each.verdict in (LOST, REFUSED)]
    row.complaints += ended.complaints(outcomes)
    well = ended.status in (0, 1) and ended.seconds < drain + 60
    row.complaints += [] if well else [f"exit status {ended.status} after {ended.seconds:.0f} s"]
    most = clients if host != "asgi" else 0  # ours tells clients to close, and takes what is connected before it stops
    row.complaints += [f"{name}: {lost} got no answer" for name, lost in cut.items() if lost > most]
    return row


def _lost(outcomes: Sequence[Outcome]) -> int:
    return sum(each.verdict == LOST and not each.unsent for each in outcomes)


def full_disk(store: Path, model: str, *, seconds: float, clients: int, places: int, count: int, host: str = "torchserve") -> Row:
    """The log cannot be written, in the first of these `places`; the server serves, drains `count` requests and ends as ever."""
    outcomes: list[Outcome] = []
    complaints: list[str] = []
    ends: list[str] = []
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    tried = [("standard output", _to_output), ("log file", _to_file)] + ([("tmpfs of 64 KiB", _to_tmpfs)] if root else [])
    tried = tried[:places]
    for name, place in tried:
        port = free_port()
        with contextlib.ExitStack() as stack:
            logs, output = stack.enter_context(place(port))
            more = ("--host", host, "--log-dir", logs)
            url, process = stack.enter_context(served(store, model, port, *more, output=output))
            traffic = Traffic(url, mixed(model), count)
            traffic.learn()
            begun = time.monotonic()
            with traffic.running(clients):
                time.sleep(seconds)
            complaints += [f"{name}: {each}" for each in all_again(traffic)]
            sent, ended = _ended(traffic, process, count)
            outcomes += traffic.since(begun)
            ends.append(f"exit status {ended.status} when {ended.in_progress(sent)} were open")
            complaints += [] if ended.status == 0 else [f"{name}: exit status {ended.status}"]
            complaints += [f"{name}: {each}" for each in ended.complaints(sent)]
    conditions = f"{', '.join(name for name, _ in tried)}; {seconds:g} s each, {clients} clients"
    row = Row("no room for the log", conditions, outcomes, f"SIGTERM: {', '.join(ends)}")
    row.complaints = complaints
    return row.allow()


def _ended(traffic: Traffic, process: subprocess.Popen[bytes], count: int) -> tuple[Sequence[Outcome], Stop]:
    """Sends requests, then SIGTERM once the server has them all; what came of them, and of it."""
    before = _arrived(traffic)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(traffic.ask) for _ in range(count)]
        wait_until(lambda: _arrived(traffic) >= before + count, "the requests arrived")
        ended = stop(process)
        return [future.result() for future in futures], ended


def _arrived(traffic: Traffic) -> float:
    text = requests.get(f"http://{traffic.host}:{traffic.port + 2}/metrics", timeout=30).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("ts_inference_requests_total{"))


Place = tuple[str, IO[bytes]]


@contextlib.contextmanager
def _to_output(_port: int) -> Iterator[Place]:
    with FULL.open("wb", buffering=0) as output:
        yield "-", output


@contextlib.contextmanager
def _to_file(port: int) -> Iterator[Place]:
    """A log file that is there and cannot grow; what the command itself says finds no room either."""
    with tempfile.TemporaryDirectory() as folder, FULL.open("wb", buffering=0) as output:
        Path(folder, f"serve-{port}.log").symlink_to(FULL)
        yield folder, output


@contextlib.contextmanager
def _to_tmpfs(_port: int) -> Iterator[Place]:
    """A disk that the log fills in a moment (root only)."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
        try:
            yield folder, output
        finally:
            subprocess.run(["umount", folder], check=True)


def lost_node(archive: Path, *, seconds: float) -> Row:
    """One of two nodes is lost: what was in flight there may fail, as JSON within five seconds; by the shipped client nothing."""
    script = ROOT / "tests" / "support" / "processes" / "ray_node.py"
    ran = subprocess.run([RAY, script, archive, str(seconds), str(free_port())], capture_output=True, text=True, check=True)
    found = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))  # Ray prints behind it
    outcomes = [
        Outcome(0, begun, ended, status, RIGHT if status == 200 else FAILED, kind)
        for begun, ended, status, kind in found["plain"]
    ]
    failed = [each for each in outcomes if each.status != 200]
    latest = max((each.ended - found["lost"] for each in failed), default=0.0)
    row = Row(
        "a node is lost", f"one of two, {seconds:g} s before and after, 8 plain clients and 8 shipped ones", outcomes,
        f"last error {latest:.1f} s after the loss; by the shipped client: {found['shipped']}",
    ).allow(FAILED)  # fmt: skip
    row.complaints += [f"an error after {latest:.1f} s"] if latest > LATEST else []
    row.complaints += [f"{each.status} {each.words}" for each in failed if each.words != "application/json"]
    return row if set(found["shipped"]) == {"answered"} else replace(row, complaints=[*row.complaints, str(found["shipped"])])
