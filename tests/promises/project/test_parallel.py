"""The whole suite runs in three workers: each file in one of them, and those that share a server in the same; while two
wait for servers, one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.processes.parallel import FIRST, GROUPS, WAITING, choose_group, group_of, strays

ROOT = Path(__file__).resolve().parents[3]


def test_whoever_uses_a_shared_server_is_listed(request: pytest.FixtureRequest) -> None:
    """Or a second one is started, beside the first. In a run of everything this looks at all tests."""
    assert strays(request.session.items) == set()


def test_what_is_listed_is_there() -> None:
    """A file that was moved is listed by its new name."""
    listed = [*FIRST, *(file for files in GROUPS.values() for file in files)]
    assert [name for name in listed if name not in GROUPS and not (ROOT / name).is_file()] == []


def test_a_group_is_a_file_or_all_that_share_a_server() -> None:
    """Parameters may hold anything."""
    assert group_of("tests/core/test_labels.py::test_a[b::c@d]") == "tests/core/test_labels.py"
    for name, files in GROUPS.items():
        assert {group_of(f"{file}::test_a") for file in files} == {name}


def test_a_worker_takes_what_is_of_its_kind_first() -> None:
    """In their order; and then what is left."""
    queue = ["tests/core/test_labels.py", *WAITING[:2], "tests/core/test_text.py"]
    others = [queue[0], queue[3]]
    for computes, wanted in ((True, [*others, *WAITING[:2]]), (False, [*WAITING[:2], *others])):
        left = list(queue)
        assert [left.pop(left.index(choose_group(left, computes))) for _ in queue] == wanted
