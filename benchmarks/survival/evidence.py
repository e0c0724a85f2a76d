"""Evidence under what goes wrong: workers that are killed, a full disk, dead stores, and as much traffic as there can be."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.survival.hardships import Row, all_again, workers
from benchmarks.survival.traffic import FAILED, Served, Traffic, wait_until
from camserve.monitoring.evidence.reading import list_entries, read_record
from camserve.monitoring.evidence.records import EvidenceError
from camserve.monitoring.evidence.stores import Folder

Found = tuple[Served, Traffic, Path]
"""A server, its traffic, and where its evidence lies."""

RECORDS, BYTES = 60, 1_000_000
"""Bounds that a minute of traffic reaches."""
DISK = 200_000
"""Bytes of a disk that is full after a few dozen records."""


def ask(place: Path | str) -> dict[str, Any]:
    """Settings by which every prediction is worth keeping, told each second."""
    keeps = {"to": str(place), "confidence": 1, "per_reason": 1000, "per_class": 1000, "sample": 600}
    return {"monitor": {"interval": 1}, "evidence": {**keeps, "max_records": RECORDS, "max_bytes": BYTES}}


def killed(server: Served, traffic: Traffic, kept: Path, *, kills: int, every: float, clients: int) -> Row:
    """SIGKILL every so many seconds: each record that is listed is whole, others go on being written, quotas hold."""
    begun = time.monotonic()
    with traffic.running(clients):
        for _ in range(kills):
            time.sleep(every)
            _wait_ready(server).send_signal(signal.SIGKILL)
        _wait_ready(server)
        before = _read(kept)[0]
        wait_until(lambda: _read(kept)[0] != before, "evidence is kept again")
    names, damaged = _read(kept)
    row = Row(
        "workers that keep evidence are killed", f"SIGKILL every {every:g} s, {kills} times, 2 workers, {clients} clients",
        traffic.since(begun), f"{len(names)} records, each of them whole",
    ).allow(FAILED)  # fmt: skip
    row.complaints += [f"{len(damaged)} records are damaged: {damaged[0]}"] if damaged else []
    row.complaints += _open_modes(kept) + all_again(traffic)
    return row


def _wait_ready(server: Served) -> psutil.Process:
    """A worker that is ready; none may be for a while, since they are killed."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = workers(server)
        return bool(found)

    wait_until(look, "a worker ready")
    return found[0]


@dataclass(frozen=True)
class Disk:
    """A disk of `DISK` bytes, or what stands for one where only root may mount it."""

    place: Path
    mounted: bool

    def free(self) -> None:
        """Make room."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=50m", str(self.place)], check=True)
        else:
            self.place.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A small tmpfs; without root, a file in place of the folder, into which nothing can be written either."""
    place = folder / "disk"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], check=True)
        try:
            yield Disk(place, True)
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
    else:
        place.touch()
        yield Disk(place, False)


def full(server: Served, traffic: Traffic, kept: Path, disk: Disk, *, seconds: float, clients: int) -> Row:
    """No answer is another one while the disk is full; once there is room, evidence is kept again."""
    begun = time.monotonic()
    with traffic.running(clients):
        wait_until(lambda: count(server, "dropped", "failed") > 0, "the disk is full")
        time.sleep(seconds)
        lost, before = count(server, "dropped", "failed"), len(_read(kept)[0])
        disk.free()
        wait_until(lambda: len(_read(kept)[0]) > before, "evidence is kept again")
    names, damaged = _read(kept)
    row = Row(
        "the disk of the evidence is full", f"{DISK // 1000} kB, {seconds:g} s, then more; {clients} clients",
        traffic.since(begun), f"{before} records, {lost:.0f} predictions not kept; {len(names)} records once there was room",
    ).allow()  # fmt: skip
    row.complaints += [f"{len(damaged)} records are damaged: {damaged[0]}"] if damaged else []
    row.complaints += all_again(traffic)
    return row


@contextlib.contextmanager
def dead_stores() -> Iterator[dict[str, str]]:
    """URLs of a store whose port is closed, and of one that takes connections and says nothing."""
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        ports = {"closed": closed.getsockname()[1], "silent": silent.getsockname()[1]}
        yield {name: f"webhdfs://127.0.0.1:{port}/kept" for name, port in ports.items()}


def unreachable(server: Served, traffic: Traffic, *, seconds: float, clients: int) -> Row:
    """Nothing can be kept, which is counted, and no answer is another one or later than it may be."""
    begun = time.monotonic()
    with traffic.running(clients):
        wait_until(lambda: count(server, "dropped", "failed") + count(server, "dropped", "slow") > 0, "evidence is lost")
        time.sleep(seconds)
    lost = {reason: count(server, "dropped", reason) for reason in ("failed", "slow")}
    figures = ", ".join(f"{number:.0f} {reason}" for reason, number in lost.items())
    row = Row("", f"{seconds:g} s, {clients} clients", traffic.since(begun), figures).allow()
    row.complaints += [f"{count(server, 'kept', 'unsure'):.0f} were kept"] if count(server, "kept", "unsure") else []
    row.complaints += all_again(traffic)
    return row


def together(rows: Sequence[Row], places: str) -> Row:
    """One line of several."""
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    complaints = [complaint for row in rows for complaint in row.complaints]
    figures = "not kept: " + "; ".join(row.figures for row in rows)
    return Row("stores of evidence that cannot be reached", f"{places}: {rows[0].conditions}", outcomes, figures, complaints)


def bounded(server: Served, traffic: Traffic, kept: Path, *, seconds: float, clients: int) -> Row:
    """All that clients can send, and all of it worth keeping: records and bytes stay within their bounds at every moment."""
    most = [0, 0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            sizes = [entry.size for entry in list_entries(Folder(kept))]
            most[:] = max(most[0], len(sizes)), max(most[1], sum(sizes))

    looking = threading.Thread(target=look)
    begun = time.monotonic()
    looking.start()
    try:
        with traffic.running(clients):
            wait_until(lambda: count(server, "kept", "unsure") > RECORDS, "the bounds are reached")
            time.sleep(seconds)
    finally:
        done.set()
        looking.join()
    told = {reason: count(server, "dropped", reason) for reason in ("quota", "memory", "slow", "budget", "failed")}
    dropped = ", ".join(f"{number:.0f} {reason}" for reason, number in told.items() if number)
    row = Row(
        "evidence at full load", f"{seconds:g} s, {clients} clients, 2 workers, at most {RECORDS} records of {BYTES / 1e6:g} MB",
        traffic.since(begun),
        f"at most {most[0]} records of {most[1] / 1e6:.2f} MB; {count(server, 'kept', 'unsure'):.0f} kept, not kept: {dropped}",
    ).allow()  # fmt: skip
    row.complaints += [f"{most[0]} records"] if most[0] > RECORDS else []
    row.complaints += [f"{most[1]} bytes"] if most[1] > BYTES else []
    row.complaints += _open_modes(kept) + all_again(traffic)
    return row


def count(server: Served, what: str, reason: str) -> float:
    """A counter of evidence, as the server exports it, over all of its series."""
    host, port = server.url.rpartition(":")[::2]
    text = requests.get(f"{host}:{int(port) + 2}/metrics", timeout=30).text
    lines = re.findall(rf'^camserve_evidence_{what}_total{{[^}}]*reason="{reason}"[^}}]*}} (\S+)', text, re.MULTILINE)
    return sum(map(float, lines))


def _read(kept: Path) -> tuple[list[str], list[str]]:
    """The names of the records, and what is wrong with those that are damaged; one that is deleted meanwhile is not."""
    store = Folder(kept)
    entries, damaged = list_entries(store), []
    for entry in entries:
        try:
            read_record(store, entry)
        except EvidenceError as error:
            damaged += [] if "gone" in str(error) else [f"{entry.name}: {error}"]
    return [entry.name for entry in entries], damaged


def _open_modes(kept: Path) -> list[str]:
    """What others could read."""
    found = [f"{path.name} has mode {path.stat().st_mode & 0o777:o}" for path in kept.rglob("*") if path.stat().st_mode & 0o077]
    return found[:3]
