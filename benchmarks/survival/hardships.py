"""What goes wrong on the server's side: workers that are killed, poisoned or short of memory, a new version."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import requests
from tests.support.build import encoded

from benchmarks.survival.traffic import FAILED, LOST, RIGHT, Ask, Outcome, Served, Traffic, wait_until
from camserve.tools.serving.health import drain
from camserve.tools.serving.health.management import Management

LATEST = 3
"""How many times `responseTimeout` may pass until the answer that it ran out: what is asked before waits in the queue first."""
WHITE = bytes(encoded(np.full((64, 64, 3), 255, np.uint8)))
RED = bytes(encoded(np.full((64, 64, 3), (255, 0, 0), np.uint8)))


@dataclass
class Row:
    """One line of the table: what was done, under which conditions, what came of the requests, and what is to complain about.

    `late` are complaints about seconds. They mean something only of a machine that does nothing else, so tests leave them out.
    """

    fault: str
    conditions: str
    outcomes: Sequence[Outcome]
    figures: str = ""
    complaints: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def allow(self, *verdicts: str) -> Row:
        """Complains about every answer that is neither right nor of one of `verdicts`."""
        bad = [each for each in self.outcomes if each.verdict not in (RIGHT, *verdicts)]
        self.complaints += [f"{each.verdict}: {each.status} {each.words}" for each in bad[:5]]
        self.complaints += [f"... {len(bad) - 5} more of this kind"] if len(bad) > 5 else []
        if not any(each.verdict == RIGHT for each in self.outcomes):
            self.complaints.append("no request was answered")
        return self


def workers(server: Served) -> list[psutil.Process]:
    """The workers that are ready, by the management address; only processes that this server started."""
    return [psutil.Process(pid) for pid in _ready_pids(server) & set(server.pids)]


def _ready_pids(server: Served) -> set[int]:
    management = Management(server.management_url)
    try:
        models = management.fetch_models() or []
        return {each["pid"] for model in models for each in model["workers"] if each["status"] == "READY"}
    finally:
        management.close()


def all_again(traffic: Traffic) -> list[str]:
    """Each request once more, alone: what is not right."""
    again = [traffic.ask(number) for number in range(len(traffic.asks))]
    return [f"afterwards: {each.verdict}: {each.status} {each.words}" for each in again if each.verdict != RIGHT]


def killed(
    server: Served, traffic: Traffic, *, kills: int, every: float, clients: int, batch: int, count: int, forgets: bool
) -> Row:
    """A worker, of `count`, gets SIGKILL every so many seconds: only the batch that it had may fail, and it comes back.

    A host that `forgets` may leave that batch without an answer: TorchServe does, where it was still waiting `maxBatchDelay` for
    more requests (its `WorkerThread` clears what it had gathered).
    """
    faults: list[tuple[float, float]] = []
    begun = time.monotonic()
    with traffic.running(clients):
        for _ in range(kills):
            time.sleep(every)
            wait_until(lambda: bool(workers(server)), "a worker ready")
            victim = workers(server)[0]
            moment = time.monotonic()
            victim.send_signal(signal.SIGKILL)
            wait_until(lambda: victim.pid not in _ready_pids(server), "TorchServe sees that it ended")  # noqa: B023 called at once
            faults.append((moment, time.monotonic()))
    back = _back(server, count, faults[-1][0])
    noticed = max(end - start for start, end in faults)
    outcomes = traffic.since(begun)
    row = Row(
        "a worker is killed", f"SIGKILL every {every:g} s, {count} workers, batches of {batch}, {clients} clients", outcomes,
        f"{kills} kills, noticed within {noticed:.1f} s; all workers ready {back:.0f} s after the last",
    ).allow(FAILED, *[LOST] * forgets)  # fmt: skip
    row.complaints += _beyond(outcomes, faults, batch) + all_again(traffic)
    return row


def poisoned(server: Served, traffic: Traffic, *, times: int, every: float, clients: int, batch: int, model: str) -> Row:
    """A picture breaks the CUDA context: the worker ends with the batch that it had, and a new one takes over."""
    row, _ = _set_off(
        server, traffic, WHITE, fault="a CUDA context is poisoned", how="the model raises what torch would",
        times=times, every=every, clients=clients, batch=batch, model=model,
    )  # fmt: skip
    return row


def hung(
    server: Served, traffic: Traffic, *, times: int, every: float, clients: int, batch: int, model: str, patience: float
) -> Row:
    """A picture with which the forward pass never ends: TorchServe gives the worker up after `patience` seconds, with the batch
    that it had, and a new one takes over, which answers what waited."""
    row, hangs = _set_off(
        server, traffic, RED, fault="a worker hangs", how=f"the pass never ends, responseTimeout {patience:g} s",
        times=times, every=every, clients=clients, batch=batch, model=model,
    )  # fmt: skip
    waited = [
        sum(each.begun < hang.ended - patience / 2 and each.ended > hang.ended and each.verdict == RIGHT for each in row.outcomes)
        for hang in hangs
    ]
    longest = max(each.seconds for each in hangs)
    row.figures += (
        f"; the picture got its error within {longest:.1f} s, and {sum(waited)} requests that waited were answered then"
    )
    row.complaints += [] if all(waited) else ["nothing waited in the queue"]
    row.complaints += [f"given up after {each.seconds:.1f} s" for each in hangs if each.seconds < patience]
    row.complaints += [
        f"the picture got {each.status} {each.words}"
        for each in hangs
        if not each.words.endswith((": Worker died.", "(responseTimeout)"))
    ]
    row.late += [f"its error came after {longest:.1f} s, not {LATEST * patience:g}"] if longest > LATEST * patience else []
    return row


def _set_off(
    server: Served, traffic: Traffic, picture: bytes, *, fault: str, how: str, times: int, every: float, clients: int, batch: int,
    model: str,
) -> tuple[Row, Sequence[Outcome]]:  # fmt: skip
    """Sends the picture that sets a model's fault off, and waits for another worker, again and again; the row, and what came of
    these pictures."""
    trigger = Traffic(server.url, [Ask(f"/explanations/{model}", picture)])
    before = {each.pid for each in workers(server)}
    seen = set(before)
    begun = time.monotonic()
    with traffic.running(clients):
        for _ in range(times):
            time.sleep(every)
            trigger.ask()
            seen |= _newcomers(server, seen)
    back = _back(server, 1, trigger.outcomes[-1].ended)
    outcomes = traffic.since(begun)
    row = Row(
        fault, f"{times} times, {clients} clients, batches of {batch}; {how}", outcomes,
        f"{len(seen - before)} workers replaced; ready {back:.0f} s after the last",
    ).allow(FAILED)  # fmt: skip
    row.complaints += [f"the picture that sets it off got {each.status}" for each in trigger.outcomes if each.status < 500]
    row.complaints += _beyond(outcomes, [(each.begun, each.ended) for each in trigger.outcomes], batch) + all_again(traffic)
    left = (seen & set(psutil.pids())) - {each.pid for each in workers(server)}
    row.complaints += [f"{len(left)} of the workers that were replaced still run"] if left else []
    return row, trigger.outcomes


def _newcomers(server: Served, known: set[int]) -> set[int]:
    """Waits for a worker that is not one of the `known`; those that there are."""
    wait_until(lambda: any(each.pid not in known for each in workers(server)), "another worker")
    return {each.pid for each in workers(server)} - known


def starved(server: Served, traffic: Traffic, *, room: int, seconds: float, clients: int, big: Ask) -> Row:
    """The worker's memory is limited to `room` MiB more than it has: a large picture gets a 507, small ones their answers."""
    large = Traffic(server.url, [big])
    (worker,) = workers(server)
    with traffic.running(clients):
        time.sleep(min(2, seconds / 4))
        before = worker.rlimit(psutil.RLIMIT_DATA)  # what is writable; RLIMIT_AS would count what threads have only reserved
        limit = worker.memory_info().data + room * 2**20
        worker.rlimit(psutil.RLIMIT_DATA, (limit, before[1]))
        begun = time.monotonic()
        during = []
        while time.monotonic() - begun < seconds:
            during.append(large.answer(0))
        ended = time.monotonic()
        if worker.is_running():
            worker.rlimit(psutil.RLIMIT_DATA, before)
    large.learn()  # only now: the memory that it takes is kept
    verdicts = [(each.status, *large.judged(0, each)) for each in during]
    outcomes = [each for each in traffic.since(begun) if each.begun < ended]
    told = ", ".join(f"{count} times {status}" for status, count in sorted(Counter(each.status for each in during).items()))
    row = Row(
        "memory is short", f"RLIMIT_DATA {room} MiB above its own, pictures of 49 megapixels among small ones, {clients} clients",
        outcomes, f"large pictures got {told}; afterwards {large.ask().status}",
    ).allow()  # fmt: skip
    refused = [words.startswith("OutOfMemory") for _, _, words in verdicts]
    row.complaints += [] if any(refused) else ["no large picture got a 507: memory was not short"]
    row.complaints += [
        f"large: {status} {words}"
        for (status, verdict, words), short in zip(verdicts, refused, strict=True)
        if verdict != RIGHT and not short
    ]
    row.complaints += [f"afterwards large: {each.words}" for each in large.outcomes if each.verdict != RIGHT]
    row.complaints += [] if [each.pid for each in workers(server)] == [worker.pid] else ["the worker was replaced"]
    row.complaints += all_again(traffic)
    return row


def replaced(server: Served, traffic: Traffic, *, model: str, file: str, seconds: float, clients: int) -> Row:
    """Version 2.0 takes the place of 1.0 under load: registered, made the default, the old one idle and then unregistered."""
    fresh = Traffic(server.url, [Ask(each.path.replace(model, f"{model}/2.0"), each.body, each.headers) for each in traffic.asks])
    begun = time.monotonic()
    with traffic.running(clients):
        time.sleep(seconds / 3)
        _manage(server, "POST", f"models?url={file}&initial_workers=1&synchronous=true")
        fresh.learn()
        traffic.adopt(fresh)
        _manage(server, "PUT", f"models/{model}/2.0/set-default")
        switched = time.monotonic()
        waited = _idle(server, model, "1.0")
        _manage(server, "DELETE", f"models/{model}/1.0")
        gone = time.monotonic()
        time.sleep(seconds / 3)
    outcomes = traffic.since(begun)
    row = Row(
        "a new version under load", f"register, set default, wait until idle, unregister; {clients} clients", outcomes,
        f"old version idle after {waited:.1f} s, unregistered {gone - switched:.1f} s after the switch",
    ).allow()  # fmt: skip
    traffic.forget()
    row.complaints += [] if any(each.begun > gone for each in outcomes) else ["nothing was asked after the change"]
    row.complaints += all_again(traffic)
    return row


def _manage(server: Served, method: str, path: str) -> None:
    answer = requests.request(method, f"{server.management_url}/{path}", timeout=120)
    if answer.status_code != 200:
        raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")


def _idle(server: Served, model: str, version: str) -> float:
    """Waits until a version has no request in its queue, and its worker none in its hands; the seconds that it took."""
    quiet: list[object] = []

    def idle() -> bool:
        (found,) = requests.get(f"{server.management_url}/models/{model}/{version}", timeout=30).json()
        marks = [drain.observe(each["pid"]) for each in found["workers"]]
        busy = found["jobQueueStatus"]["pendingRequests"] > 0 or any(at_work for at_work, _ in marks)
        quiet[:] = [] if busy or quiet[:1] != [marks] else [*quiet, marks]
        quiet[:] = quiet or ([] if busy else [marks])
        return len(quiet) > 10

    return wait_until(idle, f"version {version} idle")


def _back(server: Served, count: int, moment: float) -> float:
    wait_until(lambda: len(workers(server)) == count, f"{count} workers ready")
    return time.monotonic() - moment


def _beyond(outcomes: Iterable[Outcome], faults: Sequence[tuple[float, float]], batch: int) -> list[str]:
    """Failures that no fault excuses: of requests that were not in progress, or more than one batch for each."""
    failed = [each for each in outcomes if each.verdict in (FAILED, LOST)]
    strange = [each for each in failed if not any(each.begun <= end and begin <= each.ended for begin, end in faults)]
    found = [f"failed without a fault: {each.status} {each.words}" for each in strange[:5]]
    return found + ([f"{len(failed)} failed of {len(faults)} batches of {batch}"] if len(failed) > len(faults) * batch else [])
