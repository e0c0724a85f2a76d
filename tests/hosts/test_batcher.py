"""What a worker gets, and when its answers are given out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tests.support.processes.waiting import HANG

from camserve.hosts.batcher import Batcher
from camserve.hosts.hosted import Hosted
from camserve.hosts.metrics import Registry
from camserve.hosts.worker import Answered, Asked, HostError, Worker, WorkerLostError


class Recording:
    """In place of a process: says what it was handed, and answers when it is let."""

    alive = True

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.go = threading.Semaphore(0)
        self.handed = threading.Semaphore(0)

    def wait_ready(self) -> None:
        """At once."""

    def ask(self, batch: Sequence[Asked], timeout: float, tell_sent: Callable[[], object]) -> list[Answered]:
        """Waits until it is let."""
        names = ",".join(str(fields["name"]) for fields, _ in batch)
        self._events.append(f"handed {names}")
        tell_sent()
        self.handed.release()
        assert self.go.acquire(timeout=timeout)
        if "lost" in names:
            raise WorkerLostError("the worker ended")
        return [(200, "", {}, str(fields["name"]).encode()) for fields, _ in batch]

    def end(self, patience: float = 0.0) -> None:
        """Nothing runs."""


async def _with(names: Sequence[str], size: int, events: list[str]) -> list[Any]:
    """Asks for the first alone, and for the others while it is with the worker; all outcomes."""
    worker = Recording(events)
    hosted = Hosted("cats", "1.0", "cats.mar", Path(), batch_size=size, response_timeout=int(HANG))
    batcher = Batcher(hosted, lambda _: cast(Worker, worker), Registry())
    await batcher.start()

    async def ask(name: str) -> bytes:
        body = (await batcher.answer(({"name": name}, {})))[3]
        events.append(f"answered {name}")
        return body

    asked = [asyncio.create_task(ask(names[0]))]
    await asyncio.to_thread(worker.handed.acquire, timeout=HANG)
    asked += [asyncio.create_task(ask(name)) for name in names[1:]]
    await asyncio.sleep(0)
    worker.go.release(len(names))
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), HANG)
    await batcher.stop()
    return found


def test_the_next_batch_is_handed_over_before_the_last_ones_answers_are_written() -> None:
    """A worker that waits for the server's writing would stand idle for a part of each batch."""
    events: list[str] = []
    assert asyncio.run(_with(["a", "b", "c", "d"], 2, events)) == [b"a", b"b", b"c", b"d"]
    handed = [each for each in events if each.startswith("handed")]
    assert handed == ["handed a", "handed b,c", "handed d"]
    assert events.index("handed b,c") < events.index("answered a")
    assert events.index("handed d") < events.index("answered b")


def test_a_lost_worker_takes_only_its_batch_and_the_one_before_is_answered() -> None:
    """What it had is a 503; what it had answered is given out."""
    first, second = asyncio.run(_with(["a", "lost"], 1, []))
    assert first == b"a"
    assert isinstance(second, HostError)
    assert (second.status, second.kind) == (503, "WorkerLost")
