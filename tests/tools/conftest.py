"""Archives of a few lines, and a running server of two of them, which tests share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
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
    write_archive(path, "fragile", broken=str(path.parent / "broken"), maxRetryTimeoutInSec=5)
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


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Clients."""
    with ThreadPoolExecutor(8) as executor:
        yield executor
