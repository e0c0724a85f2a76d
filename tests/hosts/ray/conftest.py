"""In this folder, `live` is Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes.ray_serving import PYTHON, RayProcess, copy_store, ray_serving
from tests.support.processes.serving import CONFIG, write_archive, write_held
from tests.support.processes.waiting import HANG, Gate

SECOND = "resnet18"
"""The model with which the contract's tests are not repeated here: between a replica and its worker is the ASGI host's own code, and
that is asked of both models."""


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
    """The archives of `demo_store`, and models of a few lines."""
    if not PYTHON.exists():
        pytest.skip("needs .venv-ray, which scripts/test.sh makes")
    store = copy_store(request.getfixturevalue("demo_store"), tmp_path_factory.mktemp("ray") / "store")
    write_held(store, gate)
    write_archive(store, "slow", seconds=3, responseTimeout=1)
    write_archive(store, "two", seconds=0.2, minWorkers=2, maxWorkers=2)
    return store


@pytest.fixture(scope="session")
def live(ray_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayProcess]:
    """Ray with the archives of `ray_store` and the repository's config.properties, on free ports."""
    arguments = ("--model-store", str(ray_store), "--config", str(CONFIG), "--drain", str(round(HANG)))
    with ray_serving(tmp_path_factory.mktemp("ray") / "logs", *arguments) as server:
        yield server
