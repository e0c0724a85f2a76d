"""Runs the two applications and the models' workers, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import uvicorn

from camserve.hosts.asgi.app import MAX_HELD, App
from camserve.hosts.asgi.changes import Changes, Open
from camserve.hosts.asgi.client import Base, Limits
from camserve.hosts.asgi.connection import Connection
from camserve.hosts.asgi.management import Management
from camserve.hosts.batcher import Batcher
from camserve.hosts.hosted import Hosted
from camserve.hosts.metrics import Registry
from camserve.hosts.worker import LoadError, Worker

logger = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE = 75
QUIET = 1.0
"""Seconds without a request after which open connections may be closed: a client that has one ready sends it sooner."""


@dataclass(frozen=True)
class Listening:
    """Where a host listens.

    Attributes:
        inference: sockets that are bound, for predictions and explanations.
        management: for descriptions and metrics.
        certificate, key: files; with both, inference speaks HTTPS.
    """

    inference: Sequence[socket.socket]
    management: Sequence[socket.socket]
    certificate: str | None = None
    key: str | None = None


@dataclass
class _State:
    """What the loop's thread tells the others."""

    ready: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None


class Host:
    """The models of some archives, served by uvicorn. Its methods may be called from any thread.

    Args:
        hosted: what is served.
        listening: where.
        environment: of the workers.
        gpus: the numbers of the GPUs that workers are given in turn; none: the CPU.
        max_request_size, max_held: bytes of a body, and of all that are in memory at once.
        limits: on connections.
        cors: headers by which pages of another site may read answers.
        open_archive: opens an archive of the store that is to be served later on; None: the models do not change.
        allowed_hosts: names by which inference, and management, may be asked; None: any.
        take_line: gets each line that a worker prints, but for metrics; and who printed it.
    """

    def __init__(
        self,
        hosted: Sequence[Hosted],
        listening: Listening,
        environment: Mapping[str, str],
        *,
        gpus: Sequence[int] = (),
        max_request_size: int = 32 * 2**20,
        max_held: int = MAX_HELD,
        limits: Limits | None = None,
        cors: Mapping[str, str] | None = None,
        open_archive: Open | None = None,
        allowed_hosts: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
        take_line: Callable[[str], object] = logger.info,
    ) -> None:
        self.registry = Registry()
        self.batchers: list[Batcher] = []
        self._listening = listening
        self._environment = environment
        self._gpus = gpus
        self._app = App(self.batchers, max_request_size, max_held)
        self._app.limits, self._app.cors = limits or Limits(), cors or {}
        self._allowed_hosts = allowed_hosts
        self._take_line = take_line
        self._hosted = hosted
        self._servers: list[uvicorn.Server] = []
        self._state = _State()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="camserve host", daemon=True)
        self._stop_loop = asyncio.Event()
        self._changes = None if open_archive is None else Changes(self.batchers, open_archive, self._make)
        self._accepting: set[asyncio.Task[object]] = set()

    def start(self) -> None:
        """Start to load the models, and return at once."""
        self._thread.start()

    def is_ready(self) -> bool:
        """Return True once every worker has loaded its model and requests are taken.

        Raises:
            LoadError: a model does not load.
            BaseException: whatever else ended the server.
        """
        if self._state.failure is not None:
            raise self._state.failure
        return self._state.ready.is_set()

    def ended(self) -> bool:
        """Return True if the server runs no more."""
        return self._state.ended.is_set()

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that run."""
        return [worker.pid for each in self.batchers for worker in each.workers if worker is not None and worker.alive]

    def outages(self) -> list[str]:
        """Return the names of the models that have no worker now."""
        return [
            each.hosted.name for each in self.batchers if not any(worker is not None and worker.alive for worker in each.workers)
        ]

    def drain(self, seconds: float, give_up: Callable[[], bool]) -> bool:
        """Refuse new connections, and let requests finish for up to so many seconds; return whether all have.

        Each answer from now on says that its connection is closed. One that is open without a request is left so for `QUIET`
        seconds: what its client sends meanwhile is answered too.
        """
        self._loop.call_soon_threadsafe(self._close_listeners)
        end = time.monotonic() + seconds
        quiet_since = time.monotonic()
        while time.monotonic() < end and not give_up() and not self.ended():
            time.sleep(0.02)
            if not all(each.idle for each in self.batchers) or any(each.server_state.tasks for each in self._servers):
                quiet_since = time.monotonic()
            elif self._app.closing and (self._closed() or time.monotonic() - quiet_since > QUIET):
                return True
        return False

    def _closed(self) -> bool:
        return not self._servers or not self._servers[0].server_state.connections

    def stop(self) -> None:
        """End the servers and the workers."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop_loop.set)
            self._thread.join()

    def _close_listeners(self) -> None:
        """Take the connections that are made already, and listen no more."""
        for server in self._servers[:1]:
            for listener in self._listening.inference:
                self._accept_all(server, listener)
            for each in server.servers:
                each.close()
        self._app.closing = True

    def _accept_all(self, server: uvicorn.Server, listener: socket.socket) -> None:
        config = server.config
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:  # none waits
                return
            accepted.setblocking(False)
            make = partial(Connection, config, server.server_state, server.lifespan.state)
            task = self._loop.create_task(self._loop.connect_accepted_socket(make, accepted, ssl=config.ssl))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # noqa: BLE001 handed to whoever waits
            self._state.failure = error
        finally:
            self._state.ended.set()
            self._loop.close()

    async def _main(self) -> None:
        try:
            for each in self._hosted:
                self.batchers.append(self._make(each))
            await self._load()
            if self._stop_loop.is_set():
                return
            await self._serve()
        finally:
            await asyncio.gather(*(each.stop() for each in self.batchers))
            if self._changes is not None:
                self._changes.close()

    async def _load(self) -> None:
        """Load all models, unless the server is stopped meanwhile.

        Raises:
            LoadError: one does not load; its message names the model.
        """
        loads = [asyncio.create_task(self._load_one(each)) for each in self.batchers]
        stopped = asyncio.create_task(self._stop_loop.wait())
        waiting = set(loads)
        while waiting and not stopped.done():
            done, _ = await asyncio.wait({*waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
            waiting -= done
        stopped.cancel()

    async def _load_one(self, batcher: Batcher) -> None:
        try:
            await batcher.start()
        except LoadError as error:
            raise LoadError(f"the model {batcher.hosted.name} does not load: {error}") from error

    def _make(self, hosted: Hosted) -> Batcher:
        first = sum(each.hosted.workers for each in self.batchers)

        def start(number: int) -> Worker:
            gpu = self._gpus[(first + number) % len(self._gpus)] if self._gpus and hosted.on_gpu else None
            return Worker(hosted, gpu, self._environment, lambda line: self._take(hosted.name, number, line))

        return Batcher(hosted, start, self.registry)

    def _take(self, name: str, number: int, line: str) -> None:
        if line.strip() and not self.registry.read_line(line):
            self._take_line(f"[{name}-{number}] {line}")

    async def _serve(self) -> None:
        listening = self._listening
        app, management = self._app, Management(self.batchers, self.registry, self._changes)
        app.allowed_hosts, management.allowed_hosts = self._allowed_hosts
        inference, second = self._server(app, listening.certificate, listening.key), self._server(management)
        self._servers = [inference, second]
        tasks = [
            asyncio.create_task(inference.serve(sockets=list(listening.inference))),
            asyncio.create_task(second.serve(sockets=list(listening.management))),
        ]
        while not all(each.started for each in self._servers) and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        self._state.ready.set()
        await asyncio.wait({*tasks, asyncio.create_task(self._stop_loop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        for each in self._servers:
            each.should_exit = True
        await asyncio.gather(*tasks)

    def _server(self, app: Base, certificate: str | None = None, key: str | None = None) -> uvicorn.Server:
        return uvicorn.Server(
            uvicorn.Config(
                app,
                interface="asgi3",
                http=Connection,
                ws="none",
                proxy_headers=False,
                log_config=None,
                access_log=False,
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=1,
                server_header=False,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
