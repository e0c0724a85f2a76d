"""Waits until a server has nothing left to do. TorchServe keeps no count of requests in progress.

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
from camserve.tools.serving.health.sockets import count_unsent_bytes
from camserve.tools.serving.process.signal_flag import SignalFlag

INTERVAL, LATE_INTERVAL = 0.05, 0.002
"""Seconds between two looks, in the first half of the wait and in the second."""
SLACK, BLIND_SLACK = 0.3, 2.0
"""Seconds of idleness beyond the longest that a batch may fill, and where the kernel does not tell what workers wait for."""
Observation = tuple[bool, object]
"""Whether a worker is seen at work, and a value that changes when it has worked since."""


class Drain:
    """Waits until a server is idle.

    Args:
        java: the process id of TorchServe's frontend.
        port: its inference port.
        ended: returns whether it has ended.
    """

    def __init__(self, management: Management, java: int, port: int, ended: Callable[[], bool]) -> None:
        self._management = management
        self._java = java
        self._port = port
        self._ended = ended

    def wait(self, limit: float, stop_now: SignalFlag) -> bool:
        """Returns True once the server is idle; False after `limit` seconds, once `stop_now` is set, or the server has ended."""
        begun = idle_since = time.monotonic()
        workers: dict[int, Observation] = {}
        while time.monotonic() < begun + limit and not stop_now.is_set() and not self._ended():
            patient = time.monotonic() < begun + limit / 2
            java_works = has_runnable_thread(self._java)  # before it is asked, which wakes it
            models = self._management.fetch_models()
            before, workers = workers, {pid: observe(pid) for pid in _worker_pids(models or [])}
            if java_works or models is None or workers != before or self._is_busy(models, workers):
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _required_idleness(models, patient) and self._still_idle(workers):
                return True
            stop_now.wait(INTERVAL if patient else LATE_INTERVAL)
        return False

    def _still_idle(self, workers: dict[int, Observation]) -> bool:
        """Looks once more, in two milliseconds; all that was asked before took some twenty."""
        return {pid: observe(pid) for pid in workers} == workers and not has_runnable_thread(self._java)

    def _is_busy(self, models: list[dict[str, Any]], workers: dict[int, Observation]) -> bool:
        return any(busy for busy, _ in workers.values()) or _pending(models) > 0 or count_unsent_bytes(self._port) > 0


def _worker_pids(models: list[dict[str, Any]]) -> list[int]:
    return [worker["pid"] for model in models for worker in model["workers"] if worker["pid"] > 0]


def _pending(models: list[dict[str, Any]]) -> int:
    return sum(model["jobQueueStatus"]["pendingRequests"] for model in models)


def _required_idleness(models: list[dict[str, Any]], patient: bool) -> float:
    """Returns the seconds of idleness after which no batch can still be filling, with slack where there is time for it or where
    little is seen."""
    sees_waits = Path("/proc/self/wchan").exists()
    slack = (SLACK if patient else 0) if sees_waits else BLIND_SLACK
    return max((model["maxBatchDelay"] for model in models), default=0) / 1000 + slack


def observe(pid: int) -> Observation:
    """Returns whether a worker is seen at work, and a value that changes when it has worked since.

    On Linux its main thread is at work unless it sleeps in the read of a Unix socket, by which TorchServe sends
    commands; whatever wakes it counts as a context switch. Where the kernel does not tell, the processor time that it has
    used must do, and a worker that waits for something else without using any counts as idle.
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
    """Reads the kernel function in which the main thread of `pid` sleeps (Linux); empty when it runs or nobody tells."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text("ascii").strip("0\n")
    except (OSError, UnicodeDecodeError):
        return ""


def has_runnable_thread(pid: int) -> bool:
    """Returns whether a thread of the process runs, or would if it had a processor (Linux; elsewhere False)."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            if thread.read_text("latin-1").rpartition(") ")[2].startswith("R"):  # the name before may hold anything
                return True
        except OSError:
            continue
    return False
