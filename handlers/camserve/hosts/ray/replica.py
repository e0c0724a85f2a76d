"""A replica: one process of a model, which Ray Serve starts, watches and replaces, with the batcher of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray import serve

from camserve.hosts.batcher import Batcher
from camserve.hosts.hosted import Hosted
from camserve.hosts.ray.lines import Lines
from camserve.hosts.ray.metrics import Counted, ReplicaRegistry
from camserve.hosts.ray.unpacked import unpack_once
from camserve.hosts.worker import Answered, Asked, HostError, LoadError, Worker, make_environment, no_version, write_error


@dataclass(frozen=True)
class Deployed:
    """An archive as the cluster serves it.

    Attributes:
        hosted: its settings; the folder in them is that of the machine that read them.
        path: of the archive, the same on every node.
        digest: SHA-256 of its content, by which a node knows it.
        slot: which of the versions of its name that are served side by side; the first is the default.
    """

    hosted: Hosted
    path: str
    digest: str
    slot: int = 0

    @property
    def deployment(self) -> str:
        """The name that Serve knows it by: the next version takes its place under the same name, and Serve rolls it out."""
        return self.hosted.name if self.slot == 0 else f"{self.hosted.name}@{self.slot}"


@dataclass(frozen=True)
class State:
    """What a replica says of itself.

    Attributes:
        pids: of the replica and of its worker, where it has one.
        lines: of its worker's output since the last `position`.
    """

    replica: str
    pids: tuple[int, ...]
    waiting: int
    workers: list[dict[str, object]]
    lines: tuple[str, ...]
    position: int
    counted: Counted


class Replica:
    """Unpacks the archive where the node has not, and loads the model in a process of its own, as the ASGI host does.

    Raises:
        LoadError: the model does not load.
        ArchiveError: the archive cannot be read on this node.
    """

    async def __init__(self, deployed: Deployed) -> None:  # type: ignore[misc] # Serve awaits it
        self._held = contextlib.ExitStack()
        loop = asyncio.get_running_loop()
        unpacked = unpack_once(Path(deployed.path), deployed.digest)
        archive = await loop.run_in_executor(None, self._held.enter_context, unpacked)
        self._hosted = replace(deployed.hosted, directory=archive.directory, workers=1)
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._registry = ReplicaRegistry()
        self._lines = Lines(f"{self._hosted.name}-{self._name}")
        self._seen = time.monotonic()
        self._batcher = Batcher(self._hosted, self._start, self._registry)
        try:
            await self._batcher.start()
        except LoadError as error:
            await self._close()
            raise LoadError(f"the model {self._hosted.name} does not load: {error}") from None

    async def answer(self, asked: Asked, version: str | None) -> Answered:
        """Answer one request; what the queue or the worker has against it is an answer too.

        Args:
            version: the one that the request names; while another is rolled out, it may be that of other replicas.
        """
        try:
            if version not in (None, self._hosted.version):
                raise no_version(self._hosted.name, version)
            return await self._batcher.answer(asked)
        except HostError as error:
            return write_error(error)

    async def state(self, positions: Mapping[str, int]) -> State:
        """Describe the replica, with the lines of its worker's output since its `position` when it was last asked."""
        lines, position = self._lines.since(positions.get(self._name, 0))
        pids = [worker.pid for worker in self._batcher.workers if worker is not None and worker.alive]
        return State(
            self._name,
            (os.getpid(), *pids),
            await self._batcher.count_waiting(),
            await self._batcher.describe_workers(),
            lines,
            position,
            self._registry.copy(self._name),
        )

    async def check_health(self) -> None:
        """Raise where the worker has not come back within `maxRetryTimeoutInSec`: Serve then puts another replica in its place.

        Raises:
            RuntimeError: it has not.
        """
        count, _ = await self._batcher.count_ready()
        if count:
            self._seen = time.monotonic()
        if time.monotonic() - self._seen > self._hosted.retry_timeout:
            raise RuntimeError(f"the model {self._hosted.name} has had no worker for {self._hosted.retry_timeout} s")

    async def __del__(self) -> None:
        """End the worker; Serve awaits this when it stops a replica."""
        await self._close()

    async def _close(self) -> None:
        if hasattr(self, "_batcher"):
            await self._batcher.stop()
        self._held.close()

    def _start(self, _number: int) -> Worker:
        gpu = 0 if self._hosted.on_gpu and ray.get_gpu_ids() else None  # Ray shows a replica its own GPUs only
        return Worker(self._hosted, gpu, make_environment(1), self._take)  # Ray has set OMP_NUM_THREADS to `num_cpus`

    def _take(self, line: str) -> None:
        if line.strip() and not self._registry.read_line(line):
            self._lines.add(line)
