"""A worker that waits in its forward pass for as long as a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

HELD = "lambda: gate.read_text() == str(os.getpid()) and (gate.with_name('held').touch() or True)"
WAIT = "import os, pathlib, time; gate = pathlib.Path({gate!r}); [time.sleep(0.01) for _ in iter({held}, False)]"


def wait_at(gate: Path) -> str:
    """Returns the line for a model's `forward` that waits while the gate holds its process id; it touches `held` beside it."""
    return WAIT.format(gate=str(gate), held=HELD)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file; the worker whose process id it holds waits in its forward pass until it holds another."""
    path = tmp_path / "gate"
    path.write_text("")
    yield path
    path.write_text("")
