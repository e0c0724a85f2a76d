"""Errors: their types, and what they say."""

from __future__ import annotations

import ast
from pathlib import Path

from camserve.core.errors import KINDS, RequestError

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"


def collect_raised() -> set[tuple[int, str]]:
    """Status and type of every `RequestError(...)` that the package makes with both written out."""
    kinds: set[tuple[int, str]] = set()
    for path in HANDLERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RequestError":
                status, kind = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(kind, ast.Constant):
                    kinds.add((int(str(status.value)), str(kind.value)))
    return kinds


def test_every_error_is_of_a_listed_type_and_every_listed_type_is_used() -> None:
    """The table in `KINDS`, which the contract's table and the OpenAPI document repeat, is the code's own."""
    listed = {(status, kind) for status, kinds in KINDS.items() for kind in kinds}

    assert collect_raised() == listed


def test_an_error_tells_its_place() -> None:
    """`inside` keeps status and type."""
    error = RequestError(400, "InvalidImage", "data: cut off").inside("instance 1")

    assert (error.status, error.kind, error.message) == (400, "InvalidImage", "instance 1: data: cut off")
