"""What the tests share: a live server, archives, and the hooks and fixtures of `tests.support`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.support import build
from tests.support.processes.external_server import external_server
from tests.support.processes.fork_server import ForkServer
from tests.support.processes.serving import Layered

from camserve.tools.commands import package
from camserve.tools.commands.serve import Server

if TYPE_CHECKING:
    from tests.support.processes.parallel import SharedFolder  # a plugin, which pytest imports itself

pytest_plugins = (
    "tests.support.browser",
    "tests.support.processes.gate",
    "tests.support.processes.parallel",
    "tests.support.skip_report",
)

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
BATCHES = ["--batch-size", "8", "--max-batch-delay", "20"]


@pytest.fixture(autouse=True)
def threads() -> None:
    """As many of torch's threads as CAMSERVE_THREADS says, whatever another test, or what it tests, has set."""
    if os.environ.get("CAMSERVE_THREADS"):
        import torch  # seconds, which the usual run of a test without it need not wait for

        torch.set_num_threads(int(os.environ["CAMSERVE_THREADS"]))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The process off which packaging's checks are forked: one for all tests, since each check has a child of its own."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def forked(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packaging's checks are forked, instead of run in fresh processes."""
    fork_server.replace_fresh(monkeypatch)


@pytest.fixture(scope="session")
def demo(shared_folder: SharedFolder) -> Path:
    """The archive of the demo's classifier, packaged as users do it: tried in fresh processes."""
    with shared_folder("demo") as folder:
        if not folder.exists():
            folder.mkdir()
            assert package.main(["--demo", "--export-path", str(folder), *BATCHES]) == 0
    (archive,) = folder.glob("*.mar")
    return archive


@pytest.fixture(scope="session")
def demo_store(demo: Path, fork_server: ForkServer, shared_folder: SharedFolder) -> Path:
    """A model store with the demo's classifier, a ResNet-18 of random weights that may be explained at two layers and is given
    pictures of another size, and a small model with hostile labels; all take several requests at once."""
    resnet = [
        "--torchvision",
        "resnet18",
        "--random-weights",
        "--layer",
        "layer4",
        "--layer",
        "layer3",
        "--resize",
        "232",
        *BATCHES,
    ]
    with shared_folder("store") as store, pytest.MonkeyPatch.context() as patch:
        if not store.exists():
            store.mkdir()
            fork_server.replace_fresh(patch)
            assert package.main([*resnet, "--export-path", str(store)]) == 0
            shutil.copy(demo, store)
            build.mar(store, "hostile", labels=build.HOSTILE, settings={"batchSize": 8, "maxBatchDelay": 5})
    return store


@pytest.fixture(scope="session")
def layered() -> Layered:
    """Which of the archives of `live` may be explained at two layers."""
    return Layered()


@pytest.fixture(scope="session")
def live(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real TorchServe with the archives of `demo_store` and the repository's config.properties, on free ports; with
    CAMSERVE_URL the one there, which must serve the same archives and want no token."""
    if os.environ.get("CAMSERVE_URL"):
        yield external_server(os.environ["CAMSERVE_URL"])
        return
    demo_store = request.getfixturevalue("demo_store")
    with Server(demo_store, config=ROOT / "config.properties", port=0) as server:
        yield server
