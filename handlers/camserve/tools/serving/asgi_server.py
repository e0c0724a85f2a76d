"""Runs the host of our own in this process, with the interface of `Server`: no TorchServe, no Java."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from camserve.core.errors import ArchiveError, ConfigError
from camserve.hosts.host import Host, Listening
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import LoadError, make_environment
from camserve.pipeline.archive import unpack
from camserve.tools.serving.configuration.addresses import Addresses
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.environment import compose_evidence
from camserve.tools.serving.configuration.own_host import HostSettings, read_number
from camserve.tools.serving.configuration.store import StoredArchive, select
from camserve.tools.serving.own_server import OwnServer, bind, logged
from camserve.tools.serving.process.errors import Interrupted, ServeError

OTHER_FILES = 200
"""Open files besides connections: the workers' sockets, logs, libraries."""


class AsgiServer(OwnServer):
    """The ASGI host with archives of a model store. It reads TorchServe's configuration: addresses, sizes, timeouts, workers."""

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
                make_environment(threads) | compose_evidence(self._settings),
                gpus=_find_gpus(settings.gpus),
                allowed_hosts=self._find_allowed(),
                max_request_size=settings.max_request_size,
                max_held=settings.max_held,
                limits=settings.limits,
                cors=settings.cors,
                open_archive=self._open_later if self._settings.is_set("enable_model_api") else None,
                take_line=lambda line: self._take(line, sinks),
            )
            stack.enter_context(logged(lambda line: self._take(line, sinks)))
            _raise_open_files(settings.limits.connections)
            self._host.start()
            try:
                yield
            finally:
                self._host.stop()

    @property
    def pids(self) -> list[int]:
        """This process's id, then those of the workers."""
        return [os.getpid(), *sorted(self._host.worker_pids())]

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
        if not self._wait_outage(self._host.ended, self._host.outages):
            self._host.is_ready()  # raises why
            raise ServeError("the server ended by itself")

    def stop(self, drain: float = 0) -> bool:
        """End the server and its workers; return whether all requests had finished within `drain` seconds."""
        drained = drain > 0 and self._host.drain(drain, self._stop_now.is_set)
        self._host.stop()
        return drained

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
        workers = archive.workers or read_number(self._settings, "default_workers_per_model", 1)
        try:
            unpacked = stack.enter_context(unpack(self._store / archive.file))
            return Hosted.from_archive(unpacked, archive.file, archive.name, workers, self._find_defaults())
        except (ArchiveError, ConfigError) as error:
            raise ServeError(f"{archive.file}: {error}") from error

    def _listen(self, stack: contextlib.ExitStack) -> Listening:
        _, host, port = self._addresses.http[0]
        certificate, key = self._find_certificate()
        return Listening([stack.enter_context(bind(host, port))], self._bind_management(stack), certificate, key)


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
