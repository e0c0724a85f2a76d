"""What `benchmarks/survival/overload.py` complains about: a server that hangs, does not refuse, or does not recover, on made-up traffic."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.survival import overload
from benchmarks.survival.traffic import REFUSED, RIGHT, Ask, Outcome, Traffic, tally


class Provenance(Traffic):
    """Traffic without a server: `rates` right answers a second by turns (the last again and again), and a flood of `came` requests a second, of which a tenth
    is answered after `wait` seconds and the rest is refused after `told`."""

    def __init__(self, rates: list[float], came: float = 800, wait: float = 0.3, told: float = 0.01) -> None:
        super().__init__("http://127.0.0.1:1", [Ask("/", b"")])
        self.rates, self.came, self.wait, self.told = rates, came, wait, told

    def outcome(self, begun: float, seconds: float, verdict: str) -> None:
        """Something that came of a request."""
        self.outcomes.append(Outcome(0, begun, begun + seconds, 200 if verdict == RIGHT else 503, verdict))

    @contextlib.contextmanager
    def running(self, clients: int, pause: float = 0) -> Iterator[None]:
        """As many right answers as the rate says of the time inside."""
        begun = time.monotonic()
        yield
        rate = self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]
        for _ in range(round(rate * (time.monotonic() - begun))):
            self.outcome(begun, 0.05, RIGHT)

    def flood(self, rate: float, seconds: float, most: int) -> None:
        """As long as a real one."""
        begun = time.monotonic()
        time.sleep(seconds)
        for number in range(int(self.came * seconds)):
            answered = number % 10 == 0
            self.outcome(begun + number / self.came, self.wait if answered else self.told, RIGHT if answered else REFUSED)

    def ask(self, number: int | None = None) -> Outcome:
        """A right answer."""
        now = time.monotonic()
        return Outcome(0, now, now, 200, RIGHT)


def complaints(traffic: Provenance) -> str:
    """All of them, on capacity of 80/s, a queue of 20 and batches of 4: by them a request waits 0.3 s."""
    row = overload.overloaded(traffic, seconds=0.4, times=10, queue=20, batch=4, clients=4)
    assert tally(row.outcomes)[RIGHT] or row.complaints
    return "\n".join(row.complaints + row.late)


def test_a_server_that_copes_is_not_blamed() -> None:
    """Nor on a busy machine: half as fast afterwards, waits three times as long, and half of the requests that were to come."""
    assert complaints(Provenance([80, 80])) == ""
    assert complaints(Provenance([80, 45], came=400, wait=1.0)) == ""


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        ({"rates": [80, 80], "wait": 9.0}, "an accepted request took 9.0 s; by its queue 0.3 s"),
        ({"rates": [80, 80], "told": 5.5}, "99 % of the refusals took up to 5.5 s, not 5"),
        ({"rates": [80, 80], "came": 150}, "/s came, of "),
        ({"rates": [80, 20]}, "/s are answered afterwards, of "),
    ],
    ids=["late", "told late", "no overload", "not recovered"],
)
def test_damage_is_found(traffic: dict[str, Any], words: str) -> None:
    """Each promise by itself."""
    found = complaints(Provenance(**traffic))
    assert words in found
    assert len(found.splitlines()) == 1


def test_a_moments_weakness_is_forgiven() -> None:
    """Another's work may halve a rate; the best of some tries counts."""
    assert complaints(Provenance([80, 20, 20, 70])) == ""


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([0.01] * 995 + [29.0] * 5, []),
        ([0.01] * 980 + [5.5] * 20, ["99 % of the refusals took up to 5.5 s, not 5"]),
        ([0.01] * 995 + [31.0] * 5, ["a refusal took 31 s"]),
        ([31.0] * 9, ["99 % of the refusals took up to 31.0 s, not 5", "a refusal took 31 s"]),
    ],
    ids=["few late", "many late", "one hangs", "all hang"],
)
def test_refusals_are_prompt(told: list[float], found: list[str]) -> None:
    """Ninety-nine in a hundred within five seconds; a client's own weakness may delay the rest, but none hangs."""
    assert overload.refused_late(told) == found


def test_the_row_tells_how_long_refusals_took() -> None:
    """Their quantile and the longest."""
    row = overload.overloaded(Provenance([80, 80], told=0.25), seconds=0.4, times=10, queue=20, batch=4, clients=4)
    assert "refused in 0.25 s (99 %: 0.25, longest 0.25)" in row.figures


def test_no_refusal_is_no_overload() -> None:
    """A queue without an end takes everything."""
    assert overload.not_refused([]) == ["nothing was refused: this was no overload"]
