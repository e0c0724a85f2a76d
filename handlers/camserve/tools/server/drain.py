"""Finds out when a server has nothing left to do. TorchServe keeps no count of requests in progress.

A request waits in the model's queue (`pendingRequests`), then in Java's hands while a batch fills (at most
`maxBatchDelay`), then in the worker, then in the socket back to the client. So a server is idle when, for longer than a
batch may fill, no queue holds a request, every worker's main thread sleeps in the read of its next command and has not
woken, no reply lies unsent, and no thread of Java's has anything to do (on a busy machine it may wait long for a processor,
with a request that it has read and not yet queued).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import psutil

from camserve.tools.server.management import Management

INTERVAL = 0.05
SLACK = 0.3
BLIND_SLACK = 2.0
Mark = tuple[bool, object]


class Drain:
    """Waits until the server is idle: Java's process `java`, with its `management` and its inference port `port`; `ended` tells
    that it is no more."""

    def __init__(self, management: Management, java: int, port: int, ended: Callable[[], bool]) -> None:
        self._management = management
        self._java = java
        self._port = port
        self._ended = ended

    def wait(self, limit: float, hurry: Event) -> bool:
        """True once the server is idle; False after `limit` seconds, when `hurry` is set, or when the server has ended."""
        end = time.monotonic() + limit
        marks: dict[int, Mark] = {}
        quiet_since = time.monotonic()
        while time.monotonic() < end and not hurry.is_set() and not self._ended():
            at_work = runnable(self._java)  # before it is asked, which wakes it
            models = self._management.models()
            before, marks = marks, {pid: mark(pid) for pid in _worker_pids(models or [])}
            if at_work or models is None or marks != before or self._is_busy(models, marks):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _longest_wait(models):
                return True
            hurry.wait(INTERVAL)
        return False

    def _is_busy(self, models: list[dict[str, Any]], marks: dict[int, Mark]) -> bool:
        return any(busy for busy, _ in marks.values()) or _pending(models) > 0 or unsent(self._port) > 0


def _worker_pids(models: list[dict[str, Any]]) -> list[int]:
    return [worker["pid"] for model in models for worker in model["workers"] if worker["pid"] > 0]


def _pending(models: list[dict[str, Any]]) -> int:
    return sum(model["jobQueueStatus"]["pendingRequests"] for model in models)


def _longest_wait(models: list[dict[str, Any]]) -> float:
    """Seconds of silence after which no batch can still be filling."""
    slack = SLACK if Path("/proc/self/wchan").exists() else BLIND_SLACK
    return max((model["maxBatchDelay"] for model in models), default=0) / 1000 + slack


def mark(pid: int) -> Mark:
    """Whether a worker is seen at work, and a value that changes when it has worked since.

    On Linux its main thread is at work unless it sleeps in the read of a Unix socket, by which TorchServe sends
    commands; whatever wakes it is counted as a context switch. Where the kernel does not tell, the processor time that
    it has used must do, and a worker that waits for something else without using any is taken for idle.
    """
    try:
        process = psutil.Process(pid)
        place = _sleeps_in(pid)
        if place:
            return not place.startswith("unix_stream"), process.num_ctx_switches()
        return process.status() == psutil.STATUS_RUNNING, (process.num_ctx_switches(), process.cpu_times()[:2])
    except psutil.Error:
        return False, None


def _sleeps_in(pid: int) -> str:
    """The kernel function in which the main thread of `pid` sleeps (Linux); empty when it runs or nobody tells."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text("ascii").strip("0\n")
    except (OSError, UnicodeDecodeError):
        return ""


def runnable(pid: int) -> bool:
    """Whether a thread of the process runs, or would if it had a processor (Linux; elsewhere False)."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            if thread.read_text("latin-1").rpartition(") ")[2].startswith("R"):  # the name before may hold anything
                return True
        except OSError:
            continue
    return False


def unsent(port: int) -> int:
    """Bytes that clients of `port` have not taken yet, or that the server has not read (Linux; elsewhere 0)."""
    if sys.platform != "linux":
        return 0
    total = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, state, queues, *_ = row.split()
            if state != "0A" and int(local.rpartition(":")[2], 16) == port:  # 0A: listening
                total += sum(int(queue, 16) for queue in queues.split(":"))
    return total
