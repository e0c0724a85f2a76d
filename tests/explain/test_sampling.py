"""What observing may cost: the budget, and which maps are made for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import build
from tests.support.monitoring.monitors import Output, Seeing, monitor
from tests.support.processes.worker import load_monitored
from torch import Tensor

from camserve.core.errors import RequestError
from camserve.core.messages import Item, Options
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.ranking import Task
from camserve.explain.sampling import MAX_SAVINGS, NOTHING, Budget, Plan
from camserve.pictures.bounds.limits import FOREVER, Deadline
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.pipeline import Pipeline
from camserve.tools.archive.archive import handler_of


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


class Recording(Explainer):
    """Keeps how many maps each picture got that was measured."""

    counts: list[int]

    def explain(
        self,
        pictures: Sequence[Tensor],
        tasks: Sequence[Task | None],
        plan: Plan = NOTHING,
        deadline: Deadline = FOREVER,
    ) -> list[Prediction | RequestError]:
        """Explain as usual."""
        predictions = super().explain(pictures, tasks, plan, deadline)
        self.counts = [len(each.raw_maps) for each in predictions if isinstance(each, Prediction)]
        return predictions


@pytest.fixture
def dear(service: Any) -> Pipeline:
    """The small model, taken as one whose maps take backward passes."""
    face = handler_of(service).face
    explainer = Recording(replace(face.backend, closed_form=()), torch.device("cpu"))
    return Pipeline(face.served, explainer, Preprocess(face.served.config))


OPTIONS = Options((), "gradcam++", "features", "viridis", 0.5)


def maps_made(pipeline: Pipeline, chunks: int, pictures: int = 1) -> list[int]:
    """How many maps each picture of some chunks gets that are measured."""
    items = [Item(np.random.default_rng(0).random((3, 64, 64), dtype=np.float32), OPTIONS)] * pictures
    counts = []
    for _ in range(chunks):
        pipeline.answer(items, explain=False)
        counts += pipeline.explainer.counts  # type: ignore[attr-defined]
    return counts


def test_where_watching_takes_passes_it_keeps_to_its_share_of_the_time(dear: Pipeline) -> None:
    """Maps beyond the budget are left out, and it is counted how many."""
    output = Output()
    observer = dear.explainer.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    assert maps_made(dear, 2, pictures=3) == [0] * 6
    observer.budget.add(1, work=1e3, spent=0.0)
    assert 0 not in maps_made(dear, 2, pictures=3)
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 6


def test_a_chunk_that_fails_leaves_nothing_out(dear: Pipeline) -> None:
    """Its halves come again, and are counted then."""
    output = Output()
    observer = dear.explainer.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    (error,) = dear.answer([Item(np.zeros((4, 64, 64), np.float32), OPTIONS)], explain=False)
    assert isinstance(error, RequestError)
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 0


def test_the_passes_of_watching_are_charged(dear: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: the work is what a prediction takes anyway, with the maps that are asked for, and the rest is watching's."""
    times = iter([10.0, 13.0, 13.5])
    monkeypatch.setattr("camserve.explain.explainer.time", SimpleNamespace(perf_counter=lambda: next(times)))
    charged: list[tuple[int, float, float]] = []
    dear.explainer.observer = Seeing()
    budget: Any = SimpleNamespace(add=lambda *each: charged.append(each), allows=lambda: True, limited=True)
    dear.explainer.observer.budget = budget
    maps_made(dear, 1, pictures=2)

    assert charged == [(2, 3.0, 0.5)]


def test_a_budget_that_is_not_used_is_not_saved_up() -> None:
    """A day of explanations, whose maps are made anyway, must not be followed by hours of dear predictions."""
    budget = Budget(lambda _: 0.1)
    for _ in range(10_000):
        budget.add(1, work=1.0, spent=0.0)
    budget.add(1, work=1.0, spent=MAX_SAVINGS)
    assert budget.allows()
    budget.add(1, work=0.0, spent=0.2)
    assert not budget.allows()


def test_where_watching_takes_passes_the_runner_ups_map_is_made_for_some(dear: Pipeline) -> None:
    """One chunk of four, for a monitor; a observer without a budget, such as the reference's, gets all."""
    dear.explainer.observer = monitor(Output())
    dear.explainer.observer.budget.add(1, work=1e6, spent=0.0)
    assert maps_made(dear, 8) == [2, 1, 1, 1, 2, 1, 1, 1]
    dear.explainer.observer = Seeing()
    assert maps_made(dear, 3) == [2, 2, 2]
