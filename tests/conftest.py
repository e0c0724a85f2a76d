"""What the tests share: a live server, and a table of what was skipped and why, which in CI can fail the run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import build

from camserve.tools import package
from camserve.tools.serve import Server

ROOT = Path(__file__).resolve().parent.parent

NO_GPU = "needs a CUDA device"
SLOW = "slow: CAMSERVE_SLOW=1 runs it"
GOOD_REASONS = (NO_GPU, SLOW)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skips what this machine, or a quick run, cannot do."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))
        if item.get_closest_marker("slow") and os.environ.get("CAMSERVE_SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason=SLOW))


def skipped(reports: Iterable[Any]) -> Counter[tuple[str, str]]:
    """How many tests of each file were skipped for each reason."""
    found: Counter[tuple[str, str]] = Counter()
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found[report.nodeid.partition("::")[0], reason.removeprefix("Skipped: ")] += 1
    return found


def failing(found: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that make a run in CI fail."""
    return [place for place in found if os.environ.get("CI") and place[1] not in GOOD_REASONS]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skip without a good reason fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and exitstatus == pytest.ExitCode.OK and failing(skipped(reporter.stats.get("skipped", []))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what was skipped and why."""
    found = skipped(terminalreporter.stats.get("skipped", []))
    terminalreporter.section("skipped" if found else "skipped: nothing")
    for (file, reason), count in sorted(found.items()):
        terminalreporter.write_line(f"{count:>4}  {file:<32} {reason}")
    for file, reason in failing(found):
        terminalreporter.write_line(f"CI fails: {file} was skipped: {reason}", red=True)


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the demo's classifier, a ResNet-50 of random weights that may be explained at two layers, and a small
    model with hostile labels."""
    store = tmp_path_factory.mktemp("store")
    common = ["--export-path", str(store), "--batch-size", "8", "--max-batch-delay", "20"]
    assert package.main(["--demo", *common]) == 0
    assert package.main(["--torchvision", "resnet50", "--random-weights", "--layer", "layer4", "--layer", "layer3", *common]) == 0
    build.mar(store, "hostile", labels=build.HOSTILE)
    return store


@pytest.fixture(scope="session")
def live(demo_store: Path) -> Iterator[Server]:
    """A real TorchServe with the archives of `demo_store` and the repository's config.properties, on free ports."""
    with Server(demo_store, config=ROOT / "config.properties", port=0) as server:
        yield server
