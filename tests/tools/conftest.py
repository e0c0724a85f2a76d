"""Archives of a few lines, a running server of two of them, and one with classic mistakes, which tests share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support import build
from tests.support.processes.serving import CONFIG, estrange, write_archive

from camserve.tools.commands.serve import Server


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives: `quick` answers at once, `forks` has a child while it loads, `slow` after a second, `stuck` after minutes, `batch` waits
    two seconds for others, `bad` does not load, and `fragile` does not where there is a file `broken`."""
    path = tmp_path_factory.mktemp("serve") / "store"
    path.mkdir()
    write_archive(path, "quick")
    write_archive(path, "forks")
    write_archive(path, "slow", seconds=1)
    write_archive(path, "stuck", seconds=300)
    write_archive(path, "batch", batch=4, delay=2000)
    write_archive(path, "bad", seconds=-1)
    write_archive(path, "fragile", broken=str(path.parent / "broken"), maxRetryTimeoutInSec=1)
    return path


@pytest.fixture(scope="session")
def quick(store: Path) -> Iterator[Server]:
    """A server of `quick` and `forks`, for tests that only look at it and ask it."""
    server = Server(store, ["quick", "forks"], config=CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        estrange(patch)
        server.__enter__()
    yield server
    server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server that wants tokens and whose metrics go to the log, with models that have other mistakes; and its file of tokens."""
    folder = tmp_path_factory.mktemp("careless")
    build.mar(folder, "hostile", labels=build.HOSTILE, settings={"deviceType": "gpu"})
    build.mar(folder, "stock", handler="stock", settings={"batchSize": 4, "maxBatchDelay": 900, "responseTimeout": 5})
    config = folder / "config.properties"
    config.write_text("metrics_mode=log\ndisable_system_metrics=true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where TorchServe writes its key_file.json
        server = Server(folder, config=config, port=0).__enter__()
    yield server, folder / "key_file.json"
    server.__exit__(None, None, None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Clients."""
    with ThreadPoolExecutor(8) as executor:
        yield executor
