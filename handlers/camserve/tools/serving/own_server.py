"""What the servers of our own have in common, which read TorchServe's configuration and keep to it without TorchServe."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from camserve.core.text import show
from camserve.tools.serving.base import BaseServer, Sinks
from camserve.tools.serving.configuration.addresses import is_loopback
from camserve.tools.serving.configuration.environment import HOSTS, compose_hosts
from camserve.tools.serving.configuration.own_host import read_number
from camserve.tools.serving.process.errors import OutageError, ServeError
from camserve.tools.serving.process.log import LineHandler

MAX_OUTAGE = 1800.0
"""Seconds that a model may be without a worker before the command gives up, where nothing else is said."""
LOG_LINES = 2000


class OwnServer(BaseServer):
    """A server without TorchServe, with archives of a model store.

    Args (the others are the base's):
        max_outage: seconds that `wait_stop` goes without a worker of a model; None: `MAX_OUTAGE`.
    """

    def __init__(
        self,
        model_store: Path | str | None = None,
        models: Sequence[str] = (),
        *,
        config: Path | str | None = None,
        port: int | None = 0,
        public_management: bool = False,
        max_outage: float | None = None,
        sinks: Sinks = lambda _: ("memory", ()),
    ) -> None:
        super().__init__(model_store, models, config=config, port=port, public_management=public_management, sinks=sinks)
        self._max_outage = MAX_OUTAGE if max_outage is None else max_outage
        self._lines: deque[str] = deque(maxlen=LOG_LINES)

    @property
    def lines(self) -> list[str]:
        """The last lines of the log."""
        return list(self._lines)

    def _take(self, line: str, sinks: Sequence[Callable[[str], None]]) -> None:
        self._lines.append(line)
        for sink in sinks:
            sink(line)

    def _find_allowed(self) -> tuple[Sequence[str] | None, Sequence[str] | None]:
        """Finds by which names inference and management may be asked; management's own are those of this machine."""
        names = compose_hosts(self._settings, self._addresses, os.environ.get(HOSTS))
        local = is_loopback(self._addresses.http[1][1])
        return names.split(",") if names else None, () if local else None

    def _find_defaults(self) -> dict[str, int]:
        """Finds the settings of archives that give none."""
        return {
            "responseTimeout": read_number(self._settings, "default_response_timeout", 120),
            "startupTimeout": read_number(self._settings, "default_startup_timeout", 120),
            "jobQueueSize": read_number(self._settings, "job_queue_size", 100),
        }

    def _find_certificate(self) -> tuple[str | None, str | None]:
        """Finds the files of certificate and key where inference speaks HTTPS."""
        if self._addresses.http[0][0] != "https":
            return None, None
        certificate, key = (self._settings.values.get(name) for name in ("certificate_file", "private_key_file"))
        if not (certificate and key):
            raise ServeError("inference_address is https: give certificate_file and private_key_file (PEM); a keystore is Java's")
        return certificate, key

    def _bind_management(self, stack: contextlib.ExitStack) -> list[socket.socket]:
        """Binds the addresses of management and metrics."""
        _, *others = self._addresses.http
        return [stack.enter_context(bind(each, number)) for _, each, number in dict.fromkeys(others)]

    def _wait_outage(self, ended: Callable[[], bool], outages: Callable[[], list[str]]) -> bool:
        """Waits for a stop; returns False where the server has ended by itself.

        Raises:
            OutageError: a model has been without a worker for `max_outage` seconds.
        """
        since: dict[str, float] = {}
        while not self._stop.wait(0.2):
            if ended():
                return False
            now = time.monotonic()
            since = {name: since.get(name, now) for name in outages()}
            for name, began in since.items():
                if now - began > self._max_outage:
                    raise OutageError(f"the model {show(name)} has had no worker for {now - began:.0f} s, and requests wait")
        return True


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket that child processes do not inherit."""
    # With the protocol's number asyncio sends each write at once. Without it an answer's body waits until its head is
    # acknowledged, which clients put off for 40 ms.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.set_inheritable(False)
    return listener


@contextlib.contextmanager
def logged(take: Callable[[str], object]) -> Iterator[None]:
    """Send what the host itself has to say where the workers' lines go."""
    handler = LineHandler(take)
    loggers = [logging.getLogger(name) for name in ("camserve.hosts", "uvicorn")]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO if each.name.startswith("camserve") else logging.ERROR)  # uvicorn tells of each bad request
        each.propagate = False
    try:
        yield
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.level, each.propagate = level, propagate
