"""What observing may cost: the budget, and which maps are made for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support import build
from tests.support.monitoring.monitors import Output, Seeing, monitor
from tests.support.processes.worker import load_monitored

from camserve.explain.explainer import Explainer
from camserve.explain.sampling import SAVED, Budget


def test_a_budget_allows_what_has_taken_no_more_than_its_share() -> None:
    """Of all the time so far, and of a batch of many less than of a lone picture; without a share, always."""
    budget = Budget(lambda pictures: 0.1 / pictures)
    assert budget.allows()
    budget.add(1, work=1.0, spent=0.5)
    assert not budget.allows()
    budget.add(2, work=4.0, spent=0.0)
    assert not budget.allows()
    budget.add(1, work=2.0, spent=0.0)
    assert budget.allows()
    unlimited = Budget()
    unlimited.add(1, work=0.0, spent=9.0)
    assert unlimited.allows()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small model in a monitored worker, whose observer collects what it sees."""
    return load_monitored(build.archive(tmp_path_factory.mktemp("archive") / "watched"))


@pytest.fixture
def dear(service: Any) -> Explainer:
    """The small model, taken as one whose maps take backward passes."""
    backend = service._entry_point.__self__.pipeline._explainer._backend
    return Explainer(replace(backend, closed_form=()), torch.device("cpu"))


def maps_made(explainer: Explainer, chunks: int, pictures: int = 1) -> list[int]:
    """How many maps each of some chunks of watched pictures gets."""
    chunk = [torch.rand(3, 64, 64) for _ in range(pictures)]
    found = [explainer.explain(chunk, [None] * pictures, range(pictures)) for _ in range(chunks)]
    return [len(seen.raw) for several in found for seen in several]


def test_where_watching_takes_passes_it_keeps_to_its_share_of_the_time(dear: Explainer) -> None:
    """Maps beyond the budget are left out, and it is counted how many."""
    output = Output()
    observer = dear.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    assert maps_made(dear, 2, pictures=3) == [0] * 6
    observer.budget.add(1, work=1e3, spent=0.0)
    assert 0 not in maps_made(dear, 2, pictures=3)
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 6


def test_a_chunk_that_fails_leaves_nothing_out(dear: Explainer) -> None:
    """Its halves come again, and are counted then."""
    output = Output()
    observer = dear.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    with pytest.raises(RuntimeError):
        dear.explain([torch.rand(4, 64, 64)], [None], [0])
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 0


def test_the_passes_of_watching_are_charged(dear: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: the work is what a prediction takes anyway, with the maps that are asked for, and the rest is watching's."""
    times = iter([10.0, 13.0, 13.5])
    monkeypatch.setattr("camserve.explain.explainer.time.perf_counter", lambda: next(times))
    charged: list[tuple[int, float, float]] = []
    dear.observer = Seeing()
    dear.observer.budget = SimpleNamespace(add=lambda *each: charged.append(each), allows=lambda: True, limited=True)
    maps_made(dear, 1, pictures=2)

    assert charged == [(2, 3.0, 0.5)]


def test_a_budget_that_is_not_used_is_not_saved_up() -> None:
    """A day of explanations, whose maps are made anyway, must not be followed by hours of dear predictions."""
    budget = Budget(lambda _: 0.1)
    for _ in range(10_000):
        budget.add(1, work=1.0, spent=0.0)
    budget.add(1, work=1.0, spent=SAVED)
    assert budget.allows()
    budget.add(1, work=0.0, spent=0.2)
    assert not budget.allows()


def test_where_watching_takes_passes_the_runner_ups_map_is_made_for_some(dear: Explainer) -> None:
    """One chunk of four, for a monitor; a observer without a budget, such as the reference's, gets all."""
    dear.observer = monitor(Output())
    dear.observer.budget.add(1, work=1e6, spent=0.0)
    assert maps_made(dear, 8) == [2, 1, 1, 1, 2, 1, 1, 1]
    dear.observer = Seeing()
    assert maps_made(dear, 3) == [2, 2, 2]
