"""The packages of .venv-ray, and a data set that was explained once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import build as small
from tests.support.processes.fork_server import ForkedWorkers

if TYPE_CHECKING:
    from tests.support.processes.parallel import SharedFolder  # a plugin, which pytest imports itself

ROOT = Path(__file__).resolve().parents[4]
PACKAGES = next((ROOT / ".venv-ray").glob("lib/python3.*/site-packages"), None)
LABELS = {"0": "ant", "1": "bee", "2": "cat"}


@pytest.fixture(scope="session", autouse=True)
def packages() -> Iterator[None]:
    """Pyarrow, for these tests alone: other tests run where it is not installed."""
    if PACKAGES is None:
        pytest.skip("no .venv-ray: scripts/test.sh makes it")
    sys.path.append(str(PACKAGES))
    yield
    sys.path.remove(str(PACKAGES))


@pytest.fixture(scope="session")
def mar(shared_folder: SharedFolder) -> Path:
    """An archive of the tests' small model."""
    with shared_folder("small") as store:
        made = store / "small.mar"
        return made if made.exists() else small.mar(store, "small", settings={"batchSize": 8}, labels=LABELS)


@pytest.fixture(scope="session")
def pictures(shared_folder: SharedFolder) -> Path:
    """130 pictures in two folders, one of them black, one broken and one empty."""
    with shared_folder("pictures") as folder:
        if not folder.exists():
            folder.mkdir()
            small.pictures_in(folder, black=77)
            (folder / "200.jpg").write_bytes(b"\xff\xd8\xff broken")
            (folder / "201.png").write_bytes(b"")
    return folder


Run = Callable[..., Any]


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[ForkedWorkers]:
    """The process off which jobs' workers are forked."""
    with ForkedWorkers() as workers:
        yield workers


@pytest.fixture(scope="session")
def run(mar: Path, forked_workers: ForkedWorkers) -> Run:
    """Runs a job in processes of this machine: `run(input, output, **what else is asked)`."""

    def run(given: str | Path, output: str | Path, **other: Any) -> Any:
        from camserve.tools.console import Progress
        from camserve.tools.reports.dataset.engine import Workers
        from camserve.tools.reports.dataset.inputs import Columns
        from camserve.tools.reports.dataset.job import Asked
        from camserve.tools.reports.dataset.job import run as run_job

        workers = Workers(1, 1, gpu=False, address=None, ray=False)
        asked: dict[str, Any] = {"archive": mar, "trust": True, "columns": Columns(), "options": {}, "chunk": 16, "batch": None}
        asked |= {"most": 2**20, "statistics": True, "workers": workers, "input": str(given), "output": str(output)}
        with pytest.MonkeyPatch.context() as patch:
            forked_workers.replace_workers(patch)
            return run_job(Asked(**asked | other), Progress(), lambda _done, _pictures: None)

    return run


@pytest.fixture(scope="session")
def explained(request: pytest.FixtureRequest, pictures: Path, shared_folder: SharedFolder) -> Path:
    """The pictures' rows."""
    with shared_folder("explained") as output:
        if not output.exists():
            outcome = request.getfixturevalue("run")(pictures, output)
            assert (outcome.tally.explained, outcome.tally.failed, outcome.before) == (130, 2, 0)
    return output


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Reads a folder as any reader of Parquet does."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows
