"""The whole suite runs in three workers: each file in one of them, and those that use the shared server in the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.processes.parallel import FIRST, SHARED, SHARING, group_of, strays

ROOT = Path(__file__).resolve().parents[3]


def test_whoever_uses_the_shared_server_is_listed(request: pytest.FixtureRequest) -> None:
    """Or a second one is started, beside the first. In a run of everything this looks at all tests."""
    assert strays(request.session.items) == set()


def test_what_is_listed_is_there() -> None:
    """A file that was moved is listed by its new name."""
    assert [name for name in (*SHARING, *FIRST) if name != SHARED and not (ROOT / name).is_file()] == []


def test_a_group_is_a_file_or_all_that_share_the_server() -> None:
    """Parameters may hold anything."""
    assert group_of("tests/core/test_labels.py::test_a[b::c@d]") == "tests/core/test_labels.py"
    assert {group_of(f"{file}::test_a") for file in SHARING} == {SHARED}
