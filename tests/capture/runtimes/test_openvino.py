"""OpenVINO, in an environment of its own (`.venv-openvino`): the tests of runtimes run there with it, and nothing of it here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.processes.waiting import HANG

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-openvino" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-openvino: scripts/test.sh makes it")
def test_openvino_gives_what_torch_gives() -> None:
    """The tests of runtimes that name it, in a process of that environment."""
    tests = [Path(__file__).with_name("test_runtimes.py"), ROOT / "tests" / "capture" / "models" / "graphs" / "test_graphs.py"]
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "openvino", *map(str, tests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
