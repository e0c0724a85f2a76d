"""In this folder, `live` is Ray Serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import build
from tests.support.processes.ray_serving import PYTHON, RayProcess, ray_serving
from tests.support.processes.serving import CONFIG, Layered, write_archive
from tests.support.processes.waiting import HANG, Gate

SECOND = "resnet18"
"""The model with which the contract's tests are not repeated here, so that it is not loaded: between a replica and its worker is the
ASGI host's own code, and that is asked of both models."""
SMALL = Layered("hostile", ("features", "features.0"), cells=8, side=64, labels=3, asked=(2, 0), targets=(2, 0))
"""What is asked about layers, instead."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leaves out what is asked of the second model in the same way."""
    here = Path(__file__).parent
    left = [each for each in items if each.path.parent == here and _model_of(each) == SECOND]
    config.hook.pytest_deselected(items=left)
    items[:] = [each for each in items if each not in left]


def _model_of(item: Any) -> Any:
    return item.callspec.params.get("model") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def ray_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Path:
    """The demo's archive, a small model that may be explained at two layers, and two without torch, each for several tests: a replica
    takes seconds of a core. The gate holds `four`, whose queue is longer than a replica has places; `two` has two replicas."""
    if not PYTHON.exists():
        pytest.skip("needs .venv-ray, which scripts/test.sh makes")
    store = tmp_path_factory.mktemp("ray") / "store"
    store.mkdir()
    shutil.copy(request.getfixturevalue("demo"), store)
    explain = {**build.PLAIN, "layers": list(SMALL.layers)}
    build.mar(store, SMALL.name, explain=explain, labels=build.HOSTILE, settings={"batchSize": 8, "maxBatchDelay": 5})
    write_archive(store, "four", seconds=0.05, batch=4, jobQueueSize=8, gate=str(gate.path), responseTimeout=round(HANG))
    write_archive(store, "two", seconds=0.2, minWorkers=2, maxWorkers=2, responseTimeout=30)
    return store


@pytest.fixture(scope="session")
def layered() -> Layered:
    """Which of the archives of `live` may be explained at two layers."""
    return SMALL


@pytest.fixture(scope="session")
def live(ray_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayProcess]:
    """Ray with the archives of `ray_store` and the repository's config.properties, on free ports."""
    arguments = ("--model-store", str(ray_store), "--config", str(CONFIG), "--drain", str(round(HANG)))
    with ray_serving(tmp_path_factory.mktemp("ray") / "logs", *arguments) as server:
        yield server
