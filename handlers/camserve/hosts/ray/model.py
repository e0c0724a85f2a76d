"""A model whose replicas are somewhere in the cluster, as the applications of the ASGI standard ask for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from camserve.hosts.batcher import REQUESTS
from camserve.hosts.metrics import Registry
from camserve.hosts.ray.replica import Deployed, State
from camserve.hosts.worker import Answered, Asked, HostError, full_queue, late

logger = logging.getLogger(__name__)

APPLICATION = "camserve"
"""The name of the application in Ray Serve."""

VERSION: ContextVar[str | None] = ContextVar("version", default=None)
"""The version that the request of this context names."""

PATIENCE = 5.0
"""Seconds in which replicas must say how they are."""


class Watch:
    """How many replicas of each deployment run, as Serve's controller says; it is asked at most once a second."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def count(self, deployment: str) -> int:
        """Return how many replicas of a deployment run."""
        async with self._lock:
            if time.monotonic() > self._until:
                self._counts = await asyncio.get_running_loop().run_in_executor(None, count_replicas)
                self._until = time.monotonic() + 1
        return self._counts.get(deployment, 0)


def count_replicas() -> dict[str, int]:
    """Return how many replicas of each deployment run."""
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments if application else {}
    return {name: int(each.replica_states.get("RUNNING", 0)) for name, each in deployments.items()}


class Remote:
    """Hands requests to the replicas of one archive.

    Args:
        deployed: the archive.
        handle: of its deployment.
        watch: shared by all models of the process.
        registry: counts what no replica does: requests that found all queues full, or lost their replica.
    """

    def __init__(self, deployed: Deployed, handle: DeploymentHandle[Any], watch: Watch, registry: Registry | None = None) -> None:
        self.hosted = deployed.hosted
        self._registry = registry
        self._deployment = deployed.deployment
        self._handle = handle
        self._watch = watch
        self._told: dict[str, State] = {}

    async def answer(self, asked: Asked) -> Answered:
        """Return the answer to one request.

        Raises:
            HostError: the queue is full, it took too long, or its replica was lost.
        """
        fields, headers = asked
        response = self._handle.answer.remote((dict(fields), dict(headers)), VERSION.get())
        try:
            answered: Answered = await asyncio.wait_for(response, self.hosted.response_timeout)
        except asyncio.TimeoutError:
            response.cancel()
            raise late(self.hosted) from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            self._miss("full", came=True)
            raise full_queue(self.hosted) from None
        except RayTaskError:
            raise  # a fault of ours, which the application logs
        except (RayError, RayServeException) as error:
            logger.error("the model %s lost a request: %s", self.hosted.name, type(error).__name__)
            self._miss("lost")
            raise HostError(
                503, "WorkerLost", "the replica ended while it worked on this request; another takes its place; try again"
            ) from None
        return answered

    def _miss(self, reason: str, came: bool = False) -> None:
        """Count a request without an answer as a batcher does, and that it came, where it has reached none."""
        if self._registry is None:
            return
        labels = {"model_name": self.hosted.name, "model_version": self.hosted.version}
        if came:
            self._registry.add(REQUESTS, {**labels, "hostname": socket.gethostname()}, 1)
        self._registry.add("camserve_host_unanswered_total", {"reason": reason, **labels}, 1)

    async def describe(self) -> bytes:
        """Return what the handler says of itself, JSON."""
        return (await self.answer(({}, {"describe": "True"})))[3]

    async def count_ready(self) -> tuple[int, int]:
        """Return how many replicas run, and 1: with one of them the model is served."""
        return await self._watch.count(self._deployment), 1

    async def count_waiting(self) -> int:
        """Return how many requests wait in the replicas; those that wait for a replica are not among them."""
        return sum(each.waiting for each in await self.states())

    async def describe_workers(self) -> list[dict[str, object]]:
        """Describe the replicas' workers, as TorchServe's management address does."""
        workers = [worker for each in await self.states() for worker in each.workers]
        return [{**worker, "id": str(9000 + number)} for number, worker in enumerate(workers)]

    async def states(self, positions: Mapping[str, int] = MappingProxyType({})) -> Sequence[State]:
        """Ask every replica how it is.

        A replica that runs and does not say so in time is as it was when it last said so: while all of its places are taken, a
        question waits like a request, and Serve's controller, which asks apart from them, knows better whether it runs.

        Args:
            positions: by replica, up to where its worker's lines are known.
        """
        asked = self._handle.broadcast("state", dict(positions))
        found: Sequence[object] = ()
        with suppress(TimeoutError, RayError, RayServeException):
            found = await asked.results_async(timeout_s=PATIENCE, return_exceptions=True)
        told = {each.replica: each for each in found if isinstance(each, State)}
        silent = max(0, await self._watch.count(self._deployment) - len(told))
        before = [replace(each, lines=()) for name, each in self._told.items() if name not in told]
        self._told = {each.replica: each for each in before[max(0, len(before) - silent) :]} | told
        return list(self._told.values())
