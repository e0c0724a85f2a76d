"""Runs files of tests side by side: which share a worker of pytest-xdist, and which begin first."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from camserve.capture.tuning.imports import defer_compiler

SharedFolder = Callable[[str], AbstractContextManager[Path]]

SHARED = "the shared server"
SHARING = (
    "tests/inspector/test_inspector.py",
    "tests/inspector/test_inspector_area.py",
    "tests/inspector/test_inspector_pictures.py",
    "tests/promises/contract/test_contract_live.py",
    "tests/promises/contract/test_grpc_and_envelopes.py",
    "tests/promises/contract/test_kserve_live.py",
    "tests/promises/contract/test_live.py",
    "tests/promises/contract/test_repeated_fields.py",
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
"""The files whose tests use the fixtures `live` and `careless`: one worker runs them all, so that one server is started."""

QUICK = "the server of small handlers"
ASKING = ("tests/tools/serving/health/test_drain.py", "tests/tools/serving/test_server.py")
"""The same of the fixture `quick`."""

WAITING = (
    SHARED,
    "tests/hosts/ray/test_on_ray.py",
    "tests/promises/safety/test_survival.py",
    "tests/promises/numbers/test_drift_live.py",
    "tests/tools/reports/dataset/test_ray.py",
    "tests/tools/commands/test_serve.py",
    "tests/hosts/test_contract_on_asgi.py",
    "tests/promises/project/test_alerts.py",
    "tests/tools/reports/dataset/test_job.py",
    "tests/hosts/test_asgi_server.py",
    "tests/hosts/test_standin.py",
    "tests/hosts/test_limits.py",
    QUICK,
    "tests/hosts/test_monitoring_on_asgi.py",
    "tests/hosts/test_evidence_on_hosts.py",
    "tests/promises/contract/test_slow_explanations.py",
    "tests/tools/serving/process/test_log.py",
)
"""The groups that wait for servers and other processes, and leave a core to others meanwhile; the longest first."""

COMPUTING = (
    "tests/promises/contract/test_packaged_architectures.py",
    "tests/tools/commands/test_package.py",
    "tests/promises/numbers/test_fidelity.py",
    "tests/capture/test_architectures.py",
    "tests/tools/packaging/adoption/test_old_archive.py",
    "tests/capture/models/graphs/test_graphs.py",
    "tests/promises/project/test_deploy.py",
    "tests/tools/watching/evidence/test_page.py",
    "tests/tools/packaging/adoption/test_graphs.py",
    "tests/tools/packaging/models/test_advice.py",
    "tests/tools/packaging/contents/test_runtime.py",
    "tests/tools/packaging/test_scores.py",
    "tests/tools/reports/dataset/test_rows.py",
)
"""The groups of the others that take longest, or long and would begin among the last; one that began last would end last."""

GROUPS = {SHARED: SHARING, QUICK: ASKING}
FIRST = (*WAITING, *COMPUTING)


def group_of(nodeid: str) -> str:
    """Names the tests that one worker runs in one go: a file's, for its fixtures, or those of all files that share a server."""
    file = nodeid.partition("::")[0]
    return next((name for name, files in GROUPS.items() if file in files), file)


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker one of torch's threads: there are more workers than cores. Threads of other processes that wait for each
    other let go of the cores: spinning, two of them on two busy cores take 17 times the processor time for a MobileNet v2. The
    Java of servers that live for seconds spends none on optimizing itself for hours."""
    defer_compiler()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    gc.disable()  # until all tests are collected: nothing of them is garbage
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves the groups that take longest to the front, where tests run side by side."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: places.get(group_of(item.nodeid), len(FIRST)))


def pytest_collection_finish() -> None:
    """Leaves thousands of tests, and the modules that they came from, out of each search for garbage."""
    gc.freeze()
    gc.enable()


def strays(items: Iterable[pytest.Item]) -> set[str]:
    """Finds files that use a shared server and are not listed as sharing it."""
    using = [(item.nodeid.partition("::")[0], getattr(item, "fixturenames", ())) for item in items]
    found = {
        file
        for fixture, files in (("live", SHARING), ("careless", SHARING), ("quick", ASKING))
        for file, fixtures in using
        if fixture in fixtures and file not in files
    }
    return {file for file in found if not file.startswith("tests/hosts/")}  # whose `live` is another server


def choose_group(queue: Iterable[str], computes: bool) -> str:
    """Chooses a worker's next group: the first of its own kind, or where there is none left, the first."""
    groups = list(queue)
    return next((each for each in groups if (each not in WAITING) == computes), groups[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole groups, in the order of the tests; every third worker computes while the others wait for
    servers."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            computes = int(node.gateway.id.removeprefix("gw")) % 3 == 0
            self.workqueue.move_to_end(choose_group(self.workqueue, computes), last=False)
            super()._assign_work_unit(node)

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
