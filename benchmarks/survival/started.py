"""A host of our own as users start it, in a process of its own, with what the faults ask of a server."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.survival import stopping


class Started(ExitStack):
    """`scripts/serve.py --host asgi` or `ray` with one model."""

    def __init__(self, store: Path, model: str, config: Path, host: str) -> None:
        super().__init__()
        port = stopping.free_port()
        output = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 it is left with the rest
        more = ("--host", host, "--config", str(config), "--log-dir", "-")
        self.url, self._process = self.enter_context(stopping.served(store, model, port, *more, output=output))
        self.management_url = f"http://127.0.0.1:{port + 1}"

    @property
    def pids(self) -> list[int]:
        """The server's process id, then those of its workers."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [self._process.pid, *(each.pid for each in children)]
