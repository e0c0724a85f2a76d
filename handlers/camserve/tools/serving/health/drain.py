"""Finds out when a server has nothing left to do. TorchServe keeps no count of requests in progress.

A request waits in the model's queue (`pendingRequests`), then in Java's hands while a batch fills (at most
`maxBatchDelay`), then in the worker, then in the socket back to the client. So a server is idle when, for longer than a
batch may fill, no queue holds a request, every worker's main thread sleeps in the read of its next command and has not
woken, no reply lies unsent, and no thread of Java's has anything to do (on a busy machine it may wait long for a processor,
with a request that it has read and not yet queued).

Requests that come meanwhile are answered too, so a server may never be idle for so long. Queues are first in, first out:
what was there when the wait began is answered first. In the second half of the wait the first moment will do at which
nothing is in progress: whoever asks later finds a closed port, which is better than an answer that never comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from camserve.tools.serving.health.management import Management
from camserve.tools.serving.health.sockets import unsent
from camserve.tools.serving.process.flag import Flag

INTERVAL = 0.05
HASTE = 0.002
"""Seconds between two looks, in the first half of the wait and in the second."""
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

    def wait(self, limit: float, hurry: Flag) -> bool:
        """True once the server is idle; False after `limit` seconds, when `hurry` is set, or when the server has ended."""
        begun = quiet_since = time.monotonic()
        marks: dict[int, Mark] = {}
        while time.monotonic() < begun + limit and not hurry.is_set() and not self._ended():
            patient = time.monotonic() < begun + limit / 2
            at_work = runnable(self._java)  # before it is asked, which wakes it
            models = self._management.models()
            before, marks = marks, {pid: mark(pid) for pid in _worker_pids(models or [])}
            if at_work or models is None or marks != before or self._is_busy(models, marks):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _longest_wait(models, patient) and self._still_idle(marks):
                return True
            hurry.wait(INTERVAL if patient else HASTE)
        return False

    def _still_idle(self, marks: dict[int, Mark]) -> bool:
        """A last look, which takes two milliseconds; all that was asked before it took some twenty."""
        return {pid: mark(pid) for pid in marks} == marks and not runnable(self._java)

    def _is_busy(self, models: list[dict[str, Any]], marks: dict[int, Mark]) -> bool:
        return any(busy for busy, _ in marks.values()) or _pending(models) > 0 or unsent(self._port) > 0


def _worker_pids(models: list[dict[str, Any]]) -> list[int]:
    return [worker["pid"] for model in models for worker in model["workers"] if worker["pid"] > 0]


def _pending(models: list[dict[str, Any]]) -> int:
    return sum(model["jobQueueStatus"]["pendingRequests"] for model in models)


def _longest_wait(models: list[dict[str, Any]], patient: bool) -> float:
    """Seconds of silence after which no batch can still be filling; with some more where there is time for it, or where little
    is seen."""
    sees = Path("/proc/self/wchan").exists()
    slack = (SLACK if patient else 0) if sees else BLIND_SLACK
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
