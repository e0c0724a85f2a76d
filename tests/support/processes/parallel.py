"""Runs files of tests side by side: which share a worker of pytest-xdist, and which begin first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

SharedFolder = Callable[[str], AbstractContextManager[Path]]

SHARED = "the shared server"
SHARING = (
    "tests/inspector/test_inspector.py",
    "tests/inspector/test_inspector_pictures.py",
    "tests/promises/contract/test_contract_live.py",
    "tests/promises/contract/test_kserve_live.py",
    "tests/promises/contract/test_live.py",
    "tests/promises/safety/test_abuse.py",
    "tests/promises/safety/test_security.py",
    "tests/protocol/test_openapi.py",
    "tests/tools/client/test_client.py",
    "tests/tools/commands/test_doctor.py",
    "tests/tools/commands/test_explain.py",
    "tests/tools/commands/test_inspector_access.py",
    "tests/tools/reports/test_gallery.py",
    "tests/tools/watching/evidence/test_server.py",
)
"""The files whose tests use the fixture `live`: one worker runs them all, so that one server is started."""

FIRST = (
    SHARED,
    "tests/hosts/ray/test_on_ray.py",
    "tests/promises/numbers/test_drift_live.py",
    "tests/promises/safety/test_survival.py",
    "tests/tools/commands/test_serve.py",
    "tests/capture/test_architectures.py",
    "tests/promises/project/test_alerts.py",
    "tests/promises/numbers/test_processors.py",
    "tests/tools/packaging/adoption/test_old_archive.py",
    "tests/tools/commands/test_package.py",
)
"""The groups that take longest; one that began last would end last."""


def group_of(nodeid: str) -> str:
    """Names the tests that one worker runs in one go: a file's, for its fixtures, or those of all files in `SHARING`."""
    file = nodeid.partition("::")[0]
    return SHARED if file in SHARING else file


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker one of torch's threads: there are as many workers as cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves the groups that take longest to the front, where tests run side by side."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: places.get(group_of(item.nodeid), len(FIRST)))


def strays(items: Iterable[pytest.Item]) -> set[str]:
    """Finds files that use the shared server and are not listed as `SHARING` it."""
    using = {item.nodeid.partition("::")[0] for item in items if "live" in getattr(item, "fixturenames", ())}
    return {file for file in using.difference(SHARING) if not file.startswith("tests/hosts/")}  # whose `live` is another server


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole groups, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """Hands a run's workers the same folder, one after the other: who finds none makes it, the others find it filled."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own there

    @contextmanager
    def locked(name: str) -> Iterator[Path]:
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield root / name

    return locked
