"""In this folder, `live` is the ASGI host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes.waiting import Gate

from camserve.tools.serving.asgi_server import AsgiServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Holds the models `eight` and `one`."""
    return Gate(tmp_path_factory.mktemp("gate") / "shut")


@pytest.fixture(scope="session")
def live(request: pytest.FixtureRequest) -> Iterator[AsgiServer]:
    """The archives of `demo_store` and the repository's config.properties, on free ports, without TorchServe."""
    with AsgiServer(request.getfixturevalue("demo_store"), config=ROOT / "config.properties", port=0) as server:
        yield server
