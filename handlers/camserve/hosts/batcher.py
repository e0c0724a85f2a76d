"""Hands waiting requests to a model's workers, in batches of what waits when a worker is free."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from camserve.hosts.hosted import Hosted
from camserve.hosts.metrics import Registry
from camserve.hosts.worker import (
    Answered,
    Asked,
    HostError,
    LoadError,
    Worker,
    WorkerLostError,
    describe_worker,
    full_queue,
    late,
)

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a worker that does not load again is started once more: doubled each time."""

REQUESTS, LATENCY, WAITED = "ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"
"""TorchServe's names: all that came; the times of what was answered, and how much of them it waited."""
REASONS = ("full", "late", "lost", "no_worker", "gone")
"""Why a request has no answer of its worker: the metric's label."""


@dataclass(eq=False)
class _Waiting:
    asked: Asked
    answer: asyncio.Future[Answered]
    arrived: float = field(default_factory=time.perf_counter)


class Batcher:
    """One model: a bounded queue, and workers that take from it. It lives in one event loop.

    Args:
        hosted: the archive and its settings.
        start: starts a worker, given its number.
        registry: gets counts, times and the size of batches.
    """

    def __init__(self, hosted: Hosted, start: Callable[[int], Worker], registry: Registry) -> None:
        self.hosted = hosted
        self.workers: list[Worker | None] = [None] * hosted.workers
        self.restarts = 0
        self._start = start
        self._registry = registry
        self._labels = {"model_name": hosted.name, "model_version": hosted.version}
        self._queue: deque[_Waiting] = deque()
        self._arrival = asyncio.Condition()
        self._threads = ThreadPoolExecutor(hosted.workers, thread_name_prefix=hosted.name)
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0
        self._failed = False
        self._their_labels = {**self._labels, "hostname": socket.gethostname()}
        for name in (REQUESTS, LATENCY, WAITED):
            registry.add(name, self._their_labels, 0)
        for reason in REASONS:
            self._miss(reason, 0)

    async def start(self) -> None:
        """Start all workers, and return once each has loaded the model.

        Raises:
            LoadError: the model does not load.
        """
        loop = asyncio.get_running_loop()
        starts = [loop.run_in_executor(self._threads, self._load, number) for number in range(self.hosted.workers)]
        for number, started in enumerate(starts):
            self.workers[number] = await started
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self.hosted.workers)]

    async def answer(self, asked: Asked) -> Answered:
        """Return the answer to one request.

        Raises:
            HostError: the queue is full, it took too long, or its worker was lost.
        """
        if "describe" not in asked[1]:
            self._registry.add(REQUESTS, self._their_labels, 1)
        if self._failed and not self.ready:
            self._miss("no_worker")
            raise self._no_worker()
        if len(self._queue) >= self.hosted.queue_size:
            self._miss("full")
            raise full_queue(self.hosted)
        waiting = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            async with self._arrival:
                self._arrival.notify()
            return await asyncio.wait_for(waiting.answer, self.hosted.response_timeout)
        except asyncio.TimeoutError:
            self._drop(waiting, "late")
            raise late(self.hosted) from None
        except asyncio.CancelledError:
            self._drop(waiting, "gone")
            raise

    def _drop(self, waiting: _Waiting, reason: str) -> None:
        """Count a request that gets no answer, and give its place in the queue to the next, if it still has one."""
        self._miss(reason)
        if waiting in self._queue:
            self._queue.remove(waiting)

    def _miss(self, reason: str, count: int = 1) -> None:
        self._registry.add("camserve_host_unanswered_total", {"reason": reason, **self._labels}, count)

    async def describe(self) -> bytes:
        """Return what the handler says of itself, JSON.

        Raises:
            HostError: as `answer`.
        """
        return (await self.answer(({}, {"describe": "True"})))[3]

    async def count_ready(self) -> tuple[int, int]:
        """Return how many workers have the model loaded, and how many should."""
        return sum(worker is not None and worker.alive for worker in self.workers), len(self.workers)

    async def count_waiting(self) -> int:
        """Return how many requests wait for a worker."""
        return len(self._queue)

    async def describe_workers(self) -> list[dict[str, object]]:
        """Describe the workers, as TorchServe's management address does."""
        return [describe_worker(number, worker) for number, worker in enumerate(self.workers)]

    @property
    def ready(self) -> bool:
        """Whether a worker is there to answer."""
        return any(worker is not None and worker.alive for worker in self.workers)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no worker is at work."""
        return not self._queue and not self._busy

    async def stop(self) -> None:
        """End the workers; what waits is not answered any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        running = [worker for worker in self.workers if worker is not None]
        await asyncio.gather(*(loop.run_in_executor(None, worker.end, 2.0) for worker in running))
        self._threads.shutdown(wait=False)

    def _load(self, number: int) -> Worker:
        worker = self._start(number)
        worker.wait_ready()
        return worker

    def _pick(self) -> list[_Waiting]:
        """Return what waits, up to the batch size, without those whose client is gone.

        A description is a batch of its own: handlers tell it by its being alone.
        """
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self.hosted.batch_size:
            describes = "describe" in self._queue[0].asked[1]
            if describes and batch:
                break
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
            if describes:
                break
        return batch

    async def _run(self, number: int) -> None:
        while True:
            worker = self.workers[number]
            if worker is None or not worker.alive:
                await self._replace(number)
                continue
            async with self._arrival:
                await self._arrival.wait_for(lambda: self._queue)
            self._busy += 1
            try:
                await self._serve(worker, self._pick())
            finally:
                self._busy -= 1

    async def _serve(self, worker: Worker, batch: list[_Waiting]) -> None:
        """Hand over a batch, then what waits by then, until nothing does.

        Answers are given out once the next batch is handed over: the worker does not wait for their being written.
        """
        loop = asyncio.get_running_loop()
        give: Callable[[], None] | None = None
        while batch:
            began, sent = time.perf_counter(), asyncio.Event()
            tell_sent = partial(loop.call_soon_threadsafe, sent.set)
            asked, patience = [each.asked for each in batch], float(self.hosted.response_timeout)
            answers = loop.run_in_executor(self._threads, worker.ask, asked, patience, tell_sent)
            answers.add_done_callback(lambda _, sent=sent: sent.set())  # type: ignore[misc]
            if give is not None:
                await sent.wait()
                give()
            try:
                give = partial(self._give, batch, await answers, began)
            except WorkerLostError as error:
                self._lose(batch, error)
                return
            batch = self._pick() if worker.alive else []
        if give is not None:
            give()

    def _lose(self, batch: list[_Waiting], error: WorkerLostError) -> None:
        """Answer what was with a worker that ended."""
        logger.error("the model %s: %s; %d requests were with it", self.hosted.name, error, len(batch))
        lost = HostError(503, "WorkerLost", f"{error} while it worked on this request; it is started again; try again")
        reason, told = ("late", late(self.hosted)) if error.late else ("lost", lost)
        for each in batch:
            if not each.answer.done():
                self._miss(reason)
                each.answer.set_exception(told)

    def _give(self, batch: list[_Waiting], answers: list[Answered], began: float) -> None:
        for each, answered in zip(batch, answers, strict=True):
            if not each.answer.done():
                each.answer.set_result(answered)
        self._count(batch, began)

    def _count(self, batch: list[_Waiting], began: float) -> None:
        """Add up times under TorchServe's names, so that the same rules and dashboards serve both."""
        served = [each for each in batch if "describe" not in each.asked[1]]
        if not served:
            return
        ended = time.perf_counter()
        add = self._registry.add
        add(LATENCY, self._their_labels, sum(ended - each.arrived for each in served) * 1e6)
        add(WAITED, self._their_labels, sum(began - each.arrived for each in served) * 1e6)
        add("camserve_host_batches_total", self._labels | {"size": str(len(served))}, 1)

    async def _replace(self, number: int) -> None:
        """Start a worker again, with a longer pause after each failure."""
        pause = FIRST_PAUSE
        while True:
            self.workers[number] = None
            self.restarts += 1
            self._registry.add("camserve_host_worker_restarts_total", self._labels, 1)
            try:
                self.workers[number] = await asyncio.get_running_loop().run_in_executor(self._threads, self._load, number)
            except LoadError as error:
                logger.error("the model %s does not load again, next try in %g s: %s", self.hosted.name, pause, error)
                self._failed = True
                self._refuse_waiting()
            else:
                self._failed = False
                logger.info("the model %s has its worker again", self.hosted.name)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _refuse_waiting(self) -> None:
        """Answer what waits for a worker that will not come soon."""
        if self.ready:
            return
        for each in self._queue:
            if not each.answer.done():
                self._miss("no_worker")
                each.answer.set_exception(self._no_worker())

    def _no_worker(self) -> HostError:
        message = f"the model {self.hosted.name} has no worker, and does not load again; the server's log says why"
        return HostError(503, "NoWorker", message)
