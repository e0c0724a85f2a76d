"""One archive under two names: explanations that take long keep predictions neither waiting nor out."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.support.build import encoded, mar, noise
from tests.support.processes.gate import wait_at
from tests.support.processes.waiting import HANG, wait_until

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[3]
PICTURE = bytes(encoded(noise()))
QUEUE = 2


def described(server: Server, name: str) -> dict[str, Any]:
    """What the management address tells of a model."""
    (model,) = requests.get(f"{server.management_url}/models/{name}", timeout=HANG).json()
    return model


def test_explanations_that_are_stuck_leave_predictions_alone(tmp_path: Path, gate: Path) -> None:
    """Queue and worker of `explain` are full, so that it answers 503; `predict` answers everything meanwhile. Then both do."""
    store = tmp_path / "store"
    store.mkdir()
    settings = {"maxWorkers": 1, "batchSize": 1, "jobQueueSize": QUEUE}
    mar(store, "small", fault=wait_at(gate), settings=settings)

    names = ["predict=small.mar", "explain=small.mar"]
    with Server(store, names, config=ROOT / "config.properties") as server, ThreadPoolExecutor(8) as threads:

        def explain() -> Future[requests.Response]:
            return threads.submit(requests.post, f"{server.url}/explanations/explain", data=PICTURE, timeout=HANG)

        def predict() -> requests.Response:
            return requests.post(f"{server.url}/predictions/predict", data=PICTURE, timeout=HANG)

        pids = {name: described(server, name)["workers"][0]["pid"] for name in ("predict", "explain")}
        assert pids["predict"] != pids["explain"]
        alone = predict().json()
        try:
            gate.write_text(str(pids["explain"]))
            held = [explain()]
            wait_until(gate.with_name("held").exists)
            held += [explain() for _ in range(QUEUE)]
            wait_until(lambda: described(server, "explain")["jobQueueStatus"]["pendingRequests"] == QUEUE)
            late = explain().result()
            answers = [predict() for _ in range(3 * QUEUE)]
            assert not any(each.done() for each in held)
        finally:
            gate.write_text("")
        explained = [each.result() for each in held]

        assert late.status_code == 503
        assert [answer.json() for answer in answers] == [alone] * len(answers)
        assert [each.status_code for each in explained] == [200] * len(held)
        assert {each.json()["model"] for each in explained} == {"explain"}
        assert explained[0].json()["predictions"] == pytest.approx(alone, abs=1e-5)
        assert {name: described(server, name)["workers"][0]["pid"] for name in pids} == pids
