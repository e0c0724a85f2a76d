"""Runs the host of our own in this process, with the interface of `Server`: no TorchServe, no Java."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from camserve.core.errors import ArchiveError, ConfigError
from camserve.core.text import show
from camserve.hosts.host import Host, Listening
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import LoadError, make_environment
from camserve.pipeline.archive import unpack
from camserve.tools.serving.base import BaseServer, Sinks
from camserve.tools.serving.configuration.addresses import Addresses, is_loopback
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.environment import HOSTS, compose_hosts
from camserve.tools.serving.configuration.own_host import HostSettings, read_number
from camserve.tools.serving.configuration.store import StoredArchive, select
from camserve.tools.serving.process.errors import Interrupted, OutageError, ServeError
from camserve.tools.serving.process.log import LineHandler

MAX_OUTAGE = 1800.0
"""Seconds that a model may be without a worker before the command gives up, where nothing else is said."""
LOG_LINES = 2000
OTHER_FILES = 200
"""Open files besides connections: the workers' sockets, logs, libraries."""


class AsgiServer(BaseServer):
    """The ASGI host with archives of a model store. It reads TorchServe's configuration: addresses, sizes, timeouts, workers.

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

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start to load the models, without waiting for them, and end all on leaving."""
        self._archives = select(self._store, self._names)
        settings = HostSettings.read(self._settings)
        self._addresses = Addresses.choose(self._settings, self._port, self._public_management)
        self.log_place, sinks = self._sinks(self._addresses.http[0][2])
        with contextlib.ExitStack() as stack:
            hosted = [self._open(each, stack) for each in self._archives]
            threads = max(1, count_cores() // max(1, sum(each.workers for each in hosted)))
            self._host = Host(
                hosted,
                self._listen(stack),
                make_environment(threads),
                gpus=_find_gpus(settings.gpus),
                allowed_hosts=self._find_allowed(),
                max_request_size=settings.max_request_size,
                max_held=settings.max_held,
                limits=settings.limits,
                cors=settings.cors,
                open_archive=self._open_later if self._settings.is_set("enable_model_api") else None,
                take_line=lambda line: self._take(line, sinks),
            )
            stack.enter_context(_logged(lambda line: self._take(line, sinks)))
            _raise_open_files(settings.limits.connections)
            self._host.start()
            try:
                yield
            finally:
                self._host.stop()

    def _find_allowed(self) -> tuple[Sequence[str] | None, Sequence[str] | None]:
        """Finds by which names inference and management may be asked; management's own are those of this machine."""
        names = compose_hosts(self._settings, self._addresses, os.environ.get(HOSTS))
        local = is_loopback(self._addresses.http[1][1])
        return names.split(",") if names else None, () if local else None

    @property
    def pids(self) -> list[int]:
        """This process's id, then those of the workers."""
        return [os.getpid(), *sorted(self._host.worker_pids())]

    @property
    def lines(self) -> list[str]:
        """The last lines of the log."""
        return list(self._lines)

    def wait_ready(self) -> None:
        """Return once every worker of every model has loaded it.

        Raises:
            ServeError: a model does not load, with its worker's reason, or not within its `startupTimeout`.
            Interrupted: a stop was requested.
        """
        while not self._stop.wait(0.05):
            try:
                if self._host.is_ready():
                    return
            except LoadError as error:
                raise ServeError(str(error)) from error
            if self._host.ended():
                raise ServeError("the server ended by itself")
        raise Interrupted

    def wait_stop(self) -> None:
        """Return when a stop is requested.

        Raises:
            ServeError: the server has ended by itself.
            OutageError: a model has been without a worker for `max_outage` seconds.
        """
        since: dict[str, float] = {}
        while not self._stop.wait(0.2):
            if self._host.ended():
                self._host.is_ready()  # raises why
                raise ServeError("the server ended by itself")
            now = time.monotonic()
            since = {name: since.get(name, now) for name in self._host.outages()}
            for name, began in since.items():
                if now - began > self._max_outage:
                    raise OutageError(f"the model {show(name)} has had no worker for {now - began:.0f} s, and requests wait")

    def stop(self, drain: float = 0) -> bool:
        """End the server and its workers; return whether all requests had finished within `drain` seconds."""
        drained = drain > 0 and self._host.drain(drain, self._stop_now.is_set)
        self._host.stop()
        return drained

    def _take(self, line: str, sinks: Sequence[Callable[[str], None]]) -> None:
        self._lines.append(line)
        for sink in sinks:
            sink(line)

    @contextlib.contextmanager
    def _open_later(self, file: str, name: str) -> Iterator[Hosted]:
        """Open an archive that is put into the store while the server runs.

        Raises:
            ConfigError: it cannot be served.
        """
        with contextlib.ExitStack() as stack:
            try:
                (archive,) = select(self._store, [f"{name}={file}" if name else file])
                hosted = self._open(archive, stack)
            except ServeError as error:
                raise ConfigError(str(error)) from error
            yield hosted

    def _open(self, archive: StoredArchive, stack: contextlib.ExitStack) -> Hosted:
        defaults = {
            "responseTimeout": read_number(self._settings, "default_response_timeout", 120),
            "startupTimeout": read_number(self._settings, "default_startup_timeout", 120),
            "jobQueueSize": read_number(self._settings, "job_queue_size", 100),
        }
        workers = archive.workers or read_number(self._settings, "default_workers_per_model", 1)
        try:
            unpacked = stack.enter_context(unpack(self._store / archive.file))
            return Hosted.from_archive(unpacked, archive.file, archive.name, workers, defaults)
        except (ArchiveError, ConfigError) as error:
            raise ServeError(f"{archive.file}: {error}") from error

    def _listen(self, stack: contextlib.ExitStack) -> Listening:
        (scheme, host, port), *others = self._addresses.http
        certificate, key = (self._settings.values.get(name) for name in ("certificate_file", "private_key_file"))
        if scheme == "https" and not (certificate and key):
            raise ServeError("inference_address is https: give certificate_file and private_key_file (PEM); a keystore is Java's")
        inference = [stack.enter_context(_bind(host, port))]
        management = [stack.enter_context(_bind(each, number)) for _, each, number in dict.fromkeys(others)]
        return Listening(inference, management, *((certificate, key) if scheme == "https" else (None, None)))


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.set_inheritable(False)
    return listener


@contextlib.contextmanager
def _logged(take: Callable[[str], object]) -> Iterator[None]:
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


def _raise_open_files(connections: int) -> None:
    """Let so many connections be open, as far as the system lets us."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _find_gpus(most: int | None) -> list[int]:
    """Return the numbers of this machine's GPUs; a process of its own asks torch, which takes hundreds of megabytes."""
    if most == 0 or not (Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()):
        return []
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    count = int(ran.stdout) if ran.stdout.strip().isdigit() else 0
    return list(range(count if most is None else min(most, count)))
