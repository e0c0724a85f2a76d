"""A process that runs an archive's handler, seen from the server: started, asked, and replaced when it ends.

And what a host answers in its place.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.hosts.hosted import Hosted

CHILD = Path(__file__).with_name("child") / "__main__.py"

Asked = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A request's fields and headers."""
Answered = tuple[int, str, Mapping[str, str], bytes]
"""Status, content type (empty: none), headers, body."""


class HostError(Exception):
    """What the host itself answers: becomes `{"code": status, "type": kind, "message": message}`."""

    def __init__(self, status: int, kind: str, message: str, allowed: str = "") -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.allowed = status, kind, message, allowed


def full_queue(hosted: Hosted) -> HostError:
    """What is answered where no request can wait any more."""
    return HostError(503, "QueueFull", f"{hosted.queue_size} requests wait for the model {hosted.name}; try again later")


def no_version(name: str, version: str | None) -> HostError:
    """What is answered where a model has not the version that is asked for."""
    return HostError(404, "ModelVersionNotFoundException", f"Model version: {version} does not exist for model: {name}")


def late(hosted: Hosted) -> HostError:
    """What is answered in place of an answer that took too long."""
    return HostError(504, "Timeout", f"no answer within {hosted.response_timeout} s (responseTimeout)")


def write_error(error: HostError) -> Answered:
    """Write an error as an answer, in the contract's shape."""
    told = {"code": error.status, "type": error.kind, "message": error.message}
    return error.status, "application/json", {}, json.dumps(told, separators=(",", ":")).encode()


class WorkerLostError(Exception):
    """The process ended, and what it had is lost; `late`: it was ended because it did not answer in time."""

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


@dataclass(frozen=True)
class Measured:
    """The statistics of one answer, as the archive's own camserve measures them.

    Attributes:
        target: index of the most probable class.
        reason: why its map says nothing; "" where it says something.
        values: each statistic by its name; NaN where the picture does not have it.
        map: of that class, by the configured layer and method, as it is before it is scaled, `[h, w]` float32.
    """

    target: int
    reason: str
    values: Mapping[str, float]
    map: NDArray[np.float32]


class LoadError(Exception):
    """The model does not load, and why, in one line."""


class Worker:
    """One process. Its methods block, and are called from one thread.

    Args:
        hosted: the archive.
        gpu: the GPU that the handler is told of; None: the CPU.
        environment: of the process.
        take_line: gets each line of its output.
    """

    def __init__(
        self, hosted: Hosted, gpu: int | None, environment: Mapping[str, str], take_line: Callable[[str], object]
    ) -> None:
        self.hosted = hosted
        self.gpu = gpu
        self.started = time.time()
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(  # noqa: S603 this interpreter and a file of ours
                [
                    *(sys.executable, str(CHILD), str(its.fileno()), str(hosted.directory)),
                    *("" if gpu is None else str(gpu), str(hosted.batch_size)),
                ],
                cwd=hosted.directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(its.fileno(),),
            )
        self._connection = Connection(ours.detach())
        self._reader = threading.Thread(target=self._read, args=(take_line,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return once the model is loaded.

        Raises:
            LoadError: it does not load, or not within `startup_timeout`.
        """
        try:
            state, why = self._receive(self.hosted.startup_timeout)
        except WorkerLostError as error:
            raise LoadError(str(error)) from error
        if state != "ready":
            self.end()
            raise LoadError(why)

    def ask(self, batch: Sequence[Asked], timeout: float, tell_sent: Callable[[], object] = lambda: None) -> list[Answered]:
        """Hand over a batch, call `tell_sent`, and return its answers.

        Raises:
            WorkerLostError: the process ended, or took longer than `timeout` seconds.
        """
        answers: list[Answered] = self._request(batch, timeout, tell_sent)
        return answers

    def measure(self, batch: Sequence[Asked], timeout: float) -> tuple[list[Answered], list[Measured | None] | None]:
        """Hand over a batch, and return its answers and the statistics of each; None where the archive cannot measure.

        Raises:
            WorkerLostError: as `ask`.
        """
        answers, measured = self._request(("measure", batch), timeout)
        return answers, None if measured is None else [None if each is None else Measured(*each) for each in measured]

    def describe(self, timeout: float) -> Mapping[str, Any]:
        """Return what a reference of this archive holds for: `provenance` by its fields; empty where it cannot measure.

        Raises:
            WorkerLostError: as `ask`.
        """
        described: Mapping[str, Any] = self._request(("describe", []), timeout)
        return described

    def end(self, patience: float = 0.0) -> None:
        """End the process: let it finish for up to `patience` seconds, then kill it."""
        self._connection.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)

    def _request(self, message: object, timeout: float, tell_sent: Callable[[], object] = lambda: None) -> Any:
        try:
            self._connection.send(message)
        except OSError as error:
            self.end()
            raise WorkerLostError("the worker ended") from error
        tell_sent()
        return self._receive(timeout)

    def _receive(self, timeout: float) -> Any:
        try:
            if not self._connection.poll(timeout):
                self.end()
                raise WorkerLostError(f"the worker gave no answer for {timeout:g} s and was ended", late=True)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise WorkerLostError("the worker ended") from error

    def _read(self, take_line: Callable[[str], object]) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            for line in stream:
                take_line(line.decode("utf-8", "replace").rstrip("\n"))


def make_environment(threads: int) -> dict[str, str]:
    """Return this process's environment for a worker, without Python's own paths: an archive runs its own code.

    Args:
        threads: of each worker's arithmetic, where OMP_NUM_THREADS does not say otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment | {"PYTHONUNBUFFERED": "1"}


def describe_worker(number: int, worker: Worker | None) -> dict[str, object]:
    """Describe a worker as TorchServe's management address does; None: it is about to be started."""
    return {
        "id": str(9000 + number),
        "startTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(worker.started)) if worker else "",
        "status": "READY" if worker and worker.alive else "UNLOADING",
        "memoryUsage": 0,
        "pid": worker.pid if worker else 0,
        "gpu": bool(worker and worker.gpu is not None),
        "gpuUsage": "",
    }
