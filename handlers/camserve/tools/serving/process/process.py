"""Runs a process apart from the terminal, keeps its output, and ends it with all its descendants."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Thread

import psutil

# Runs as a program of its own, because it must act between fork and exec, where Python code is unsafe in a process with
# threads: asks Linux to kill this process when its parent dies (PR_SET_PDEATHSIG is kept by exec), then becomes argv[2:].
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class OwnProcess:
    """A child in a session and process group of its own, so that the terminal's Ctrl-C does not reach it.

    On Linux the kernel kills it when the thread that made it ends, however that ends; so it is made on a thread that
    lives as long. Each line that it or a descendant prints goes to every one of `sinks`, whatever becomes of the others
    (full disks, closed pipes); `lines` keeps the last thousand.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], sinks: Sequence[Callable[[str], None]]) -> None:
        self.lines: deque[str] = deque(maxlen=1000)
        self._sinks = (self.lines.append, *sinks)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, name="server output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id, and its group's."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the child itself has ended."""
        return self._process.poll() is not None

    def children(self, recursive: bool = True) -> set[psutil.Process]:
        """Finds the processes that still run of those that the child started, and that these started."""
        try:
            return set(psutil.Process(self.pid).children(recursive=recursive))
        except psutil.NoSuchProcess:
            return set()

    def end(self) -> None:
        """Ends the child and the rest of its group by force, and waits until they are gone; may be called again."""
        rest = self.children()
        # Asked to end, Java resets its connections just as quickly, and then waits two seconds for nothing.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + 5
        while any(is_running(process) for process in rest) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._reader.join(timeout=5)

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                for sink in self._sinks:
                    with contextlib.suppress(OSError):  # Java would block on a full pipe
                        sink(line)


def is_running(process: psutil.Process) -> bool:
    """Returns whether a process has not ended; a zombie has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_worker(process: psutil.Process) -> bool:
    """Returns whether a process is one of TorchServe's workers, or a child that one has forked."""
    try:
        return any("model_service_worker" in word for word in process.cmdline())
    except psutil.Error:
        return False
