"""More requests than can be answered: what cannot be taken is refused at once, the rest is answered in time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import psutil

from benchmarks.survival.hardships import Row, all_again
from benchmarks.survival.traffic import REFUSED, RIGHT, Served, Traffic, tally

MOST, PROMPT, LONGEST = 0.99, 5.0, 30.0
"""The share of refusals that must come within so many seconds, and the seconds of the longest: limits for hanging."""
LONGER, GRACE = 5.0, 5.0
"""How much longer than by its queue an accepted request may take: so many times, and so many seconds on top."""
SLOWER, TRIES = 0.5, 4
"""The share of its capacity that a server must have again afterwards, at the best of so many tries."""
FEWER = 0.3
"""The share of the requests that were to come which must have come: the client is Python, on the same cores."""


def overloaded(traffic: Traffic, *, seconds: float, times: float, queue: int, batch: int, clients: int) -> Row:
    """`times` as many requests as it can answer: what it cannot take is refused at once, and the rest is answered in time."""
    capacity = _rate(traffic, clients, seconds / 4)
    begun = time.monotonic()
    traffic.flood(times * capacity, seconds, most=queue + 200)
    outcomes = traffic.since(begun)
    took = [each.seconds for each in outcomes if each.verdict == RIGHT]
    told = [each.seconds for each in outcomes if each.verdict == REFUSED]
    settled = time.monotonic()
    again = all_again(traffic)
    settled = time.monotonic() - settled
    after = _recovered(traffic, clients, seconds / 4, capacity)
    offered = len(outcomes) / (max(each.begun for each in outcomes) - begun)
    row = Row(
        f"{times:g} times as many requests as it can answer",
        f"{capacity:.0f}/s are possible, {offered:.0f}/s came for {seconds:g} s, queue of {queue}", outcomes,
        f"answered in {_spread(took)}, refused in {_spread(told)}; afterwards all {len(traffic.asks)} kinds alone in "
        f"{settled:.1f} s, and {after:.0f}/s",
    ).allow(REFUSED)  # fmt: skip
    row.complaints += again + not_refused(told)
    row.late += too_late(took, (queue + batch) / capacity) + refused_late(told)
    row.late += too_few("came", offered, FEWER, times * capacity)
    row.late += too_few("are answered afterwards", after, SLOWER, capacity)
    return row


def too_late(took: Sequence[float], wait: float) -> list[str]:
    """Whether an accepted request waited far longer than the `wait` that its queue means."""
    longest, limit = max(took, default=0), LONGER * wait + GRACE
    if longest <= limit:
        return []
    return [f"an accepted request took {longest:.1f} s; by its queue {wait:.1f} s, at most {limit:.1f} s"]


def not_refused(told: Sequence[float]) -> list[str]:
    """Whether nothing was refused."""
    return [] if told else ["nothing was refused: this was no overload"]


def refused_late(told: Sequence[float]) -> list[str]:
    """Whether refusals came late, or one hung."""
    most, longest = (float(np.quantile(told, MOST)), max(told)) if told else (0.0, 0.0)
    found = [f"{MOST * 100:g} % of the refusals took up to {most:.1f} s, not {PROMPT:g}"] if most > PROMPT else []
    return found + ([f"a refusal took {longest:.0f} s"] if longest > LONGEST else [])


def too_few(what: str, rate: float, share: float, wanted: float) -> list[str]:
    """Whether a rate is less than this share of what was wanted."""
    return [f"{rate:.0f}/s {what}, of {wanted:.0f}/s"] if rate < share * wanted else []


def _recovered(traffic: Traffic, clients: int, seconds: float, before: float) -> float:
    """The rate once more, which is measured again where it is low: another's work for a moment is no damage."""
    rate = _rate(traffic, clients, seconds)
    for _ in range(TRIES - 1):
        if rate < SLOWER * before:
            time.sleep(seconds)
            rate = max(rate, _rate(traffic, clients, seconds))
    return rate


def crammed(server: Served, traffic: Traffic, *, seconds: float, clients: int, queue: int, batch: int, heap: int) -> Row:
    """More large requests than the queue takes, and a heap (MiB) that holds those: they are refused, and Java lives."""
    java = psutil.Process(server.pids[0])
    begun, largest = time.monotonic(), 0
    with traffic.running(clients):
        while time.monotonic() < begun + seconds:
            largest = max(largest, java.memory_info().rss if java.is_running() else 0)
            time.sleep(0.1)
    outcomes = traffic.since(begun)
    told = [each.seconds for each in outcomes if each.verdict == REFUSED]
    size = max(len(ask.body) for ask in traffic.asks) / 1e6
    row = Row(
        "large requests fill the queue",
        f"{clients} clients, {size:g} MB each, queue of {queue}, batches of {batch}, heap of {heap} MiB", outcomes,
        f"Java took up to {largest / 2**20:.0f} MiB; refused in {_spread(told)}",
    ).allow(REFUSED)  # fmt: skip
    row.late += refused_late(told)
    row.complaints += not_refused(told) + all_again(traffic)
    row.complaints += [] if server.pids[:1] == [java.pid] and java.is_running() else ["Java ended"]
    return row


def _rate(traffic: Traffic, clients: int, seconds: float) -> float:
    """Right answers a second with `clients` that wait for theirs."""
    begun = time.monotonic()
    with traffic.running(clients):
        time.sleep(seconds)
    verdicts = tally(traffic.since(begun))
    if set(verdicts) - {RIGHT}:
        raise RuntimeError(f"without overload: {dict(verdicts)}")
    return verdicts[RIGHT] / (time.monotonic() - begun)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no time"
    return f"{statistics.median(values):.2f} s ({MOST * 100:g} %: {np.quantile(values, MOST):.2f}, longest {max(values):.2f})"
