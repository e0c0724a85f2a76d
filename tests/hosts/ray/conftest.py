"""In this folder, `live` is Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes.ray_serving import PYTHON, RayProcess, copy_store, ray_serving
from tests.support.processes.serving import CONFIG, write_archive


@pytest.fixture(scope="session")
def ray_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives of `demo_store`, and models that sleep."""
    if not PYTHON.exists():
        pytest.skip("needs .venv-ray, which scripts/test.sh makes")
    store = copy_store(request.getfixturevalue("demo_store"), tmp_path_factory.mktemp("ray") / "store")
    write_archive(store, "eight", seconds=0.1, batch=8)
    write_archive(store, "one", seconds=0.5, jobQueueSize=2)
    write_archive(store, "slow", seconds=3, responseTimeout=1)
    write_archive(store, "two", seconds=0.2, minWorkers=2, maxWorkers=2)
    return store


@pytest.fixture(scope="session")
def live(ray_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayProcess]:
    """Ray with the archives of `ray_store` and the repository's config.properties, on free ports."""
    arguments = ("--model-store", str(ray_store), "--config", str(CONFIG), "--drain", "30")
    with ray_serving(tmp_path_factory.mktemp("ray") / "logs", *arguments) as server:
        yield server
