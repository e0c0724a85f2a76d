"""What a cluster has beside it on loopback: management and metrics, and the workers' lines, gathered from all replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from camserve.hosts.asgi.client import Client
from camserve.hosts.asgi.management import Management
from camserve.hosts.ray import FRONT
from camserve.hosts.ray.metrics import Collection
from camserve.hosts.ray.model import APPLICATION, PATIENCE, Remote, Watch
from camserve.hosts.ray.replica import Deployed, State

logger = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two looks at the replicas."""


class ClusterManagement(Management):
    """The management application, whose metrics are those of all replicas."""

    def __init__(self, models: Sequence[Remote], collection: Collection, look: Callable[[], object]) -> None:
        super().__init__(models, collection)
        self._look = look

    async def answer(self, client: Client) -> None:
        """Answer a request of whoever watches the server."""
        if client.path == "/metrics":
            await self._look()  # type: ignore[misc]
        await super().answer(client)


class Beside:
    """Runs the management application in a thread of its own, and looks at the replicas every second.

    Args:
        deployed: what the cluster serves.
        listening: sockets that are bound.
        allowed_hosts: names by which management may be asked; None: any.
        take_line: gets each line of the workers' output.
    """

    def __init__(
        self,
        deployed: Sequence[Deployed],
        listening: Sequence[socket.socket],
        allowed_hosts: Sequence[str] | None,
        take_line: Callable[[str], object],
    ) -> None:
        watch = Watch()
        self._models = [Remote(each, serve.get_deployment_handle(each.deployment, APPLICATION), watch) for each in deployed]
        self._front = serve.get_deployment_handle(FRONT, APPLICATION)
        self._listening = listening
        self._take_line = take_line
        self._collection = Collection()
        self._app = ClusterManagement(self._models, self._collection, self.look)
        self._app.allowed_hosts = allowed_hosts
        self._server = uvicorn.Server(
            uvicorn.Config(self._app, log_config=None, access_log=False, lifespan="off", server_header=False)
        )
        self._positions: dict[str, int] = {}
        self._states: dict[str, list[State]] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._looking = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, name="camserve beside", daemon=True)

    def start(self) -> None:
        """Start the thread, and return once the management application answers."""
        self._thread.start()
        while not self._server.started and not self.ended():
            time.sleep(0.02)

    def stop(self) -> None:
        """End the thread; call it while the cluster still runs."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def ended(self) -> bool:
        """Return whether the thread has ended by itself."""
        return not self._thread.is_alive()

    def refresh(self) -> None:
        """Look at the replicas now, and return when that is done; of any thread but the own one."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError, TimeoutError):
                asyncio.run_coroutine_threadsafe(self.look(), self._loop).result(10)

    def pids(self) -> list[int]:
        """Return the process ids of replicas and workers, as far as they are on this machine."""
        return sorted(pid for states in self._states.values() for each in states for pid in each.pids)

    def outages(self) -> list[str]:
        """Return the names of the models that have no worker now."""
        return [name for name, states in self._states.items() if not any(len(each.pids) > 1 for each in states)]

    async def look(self) -> None:
        """Ask all replicas for their state, and take over their lines and counts."""
        async with self._looking:
            for model in self._models:
                states = list(await model.states(self._positions))
                self._states[model.hosted.name] = states
                self._collection.collect(each.counted for each in states)
                for each in states:
                    self._take_lines(each.replica, each.lines, each.position)
            fronts: Sequence[object] = ()
            with contextlib.suppress(TimeoutError, RayError, RayServeException):  # while another takes its place
                asked = self._front.broadcast("lines", self._positions)
                fronts = await asked.results_async(timeout_s=PATIENCE, return_exceptions=True)
            for front in fronts:
                if isinstance(front, tuple):
                    *told, counted = front
                    self._take_lines(*told)
                    self._collection.collect([counted])

    def _take_lines(self, replica: str, lines: Sequence[str], position: int) -> None:
        self._positions[replica] = position
        for line in lines:
            self._take_line(line)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=list(self._listening)))
        while not self._stop.is_set():
            try:
                await self.look()
            except Exception:
                logger.exception("the replicas could not be asked")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), EVERY)
        self._server.should_exit = True
        await serving
