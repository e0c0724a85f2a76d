"""Which tests are skipped, and what that means: a table at the end, and a failed run in CI where a skip has no good reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

NO_GPU = "needs a CUDA device"
SLOW = "slow: CAMSERVE_SLOW=1 runs it"
OLD_PYTHON = "a package that it needs is for Python 3.11 and newer"
GOOD_REASONS = (NO_GPU, SLOW, OLD_PYTHON)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skips what this machine, or a quick run, cannot do."""
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))
        if item.get_closest_marker("slow") and os.environ.get("CAMSERVE_SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason=SLOW))


def _has_gpu() -> bool:
    import torch  # seconds, which tests that need no GPU need not wait for

    return torch.cuda.is_available()


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
