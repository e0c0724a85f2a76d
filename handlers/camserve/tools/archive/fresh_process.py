"""Runs a program of `fresh` in a process that inherits nothing of this one's Python path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from camserve.tools.archive import fresh
from camserve.tools.console import ToolError

PROGRAMS = Path(fresh.__file__).with_name("__main__.py")

START = "import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
"""Runs a file without its folder on the path: our modules would hide Python's own of the same name."""


def run_fresh(program: str, *arguments: str) -> Any:
    """Runs a program of `fresh` and returns its result, read from JSON.

    Raises:
        ToolError: the process ended without a result; its last words are repeated.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # one picture gains nothing by more, and loses much on a busy machine
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-c", START, str(PROGRAMS), program, str(result), *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if not result.exists():
            last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
            raise ToolError(f"the process that loads the model ended with status {done.returncode}: {' '.join(last)}")
        return json.loads(result.read_text())
