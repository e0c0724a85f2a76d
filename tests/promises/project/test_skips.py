"""What a skipped test means for the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import skip_report

CASES = """
import pytest

@pytest.mark.slow
def test_slow(): pass

{other}

def test_good(): pass
"""
NO_TOOL = "def test_other(): pytest.skip('no such tool')"
NO_GPU = "@pytest.mark.gpu\ndef test_gpu(): pass"
LISTED = "1  test_cases.py                    "


@pytest.mark.parametrize(
    ("other", "ci", "workers", "status", "words"),
    [
        pytest.param(NO_GPU, True, 0, 0, [f"{LISTED}needs a CUDA device", f"{LISTED}slow: CAMSERVE_SLOW=1 runs it"], id="good"),
        pytest.param(NO_TOOL, False, 0, 0, [f"{LISTED}no such tool"], id="elsewhere"),
        pytest.param(NO_TOOL, True, 0, 1, ["CI fails: test_cases.py was skipped: no such tool"], id="in CI"),
        pytest.param(NO_TOOL, True, 2, 1, ["CI fails: test_cases.py was skipped: no such tool"], id="in CI, side by side"),
    ],
)
def test_a_skip_is_listed_and_fails_in_ci_without_a_good_reason(
    tmp_path: Path, other: str, ci: bool, workers: int, status: int, words: list[str]
) -> None:
    """A missing GPU and a slow test are good reasons; any other fails the run where CI is set; also where tests run side by side."""
    shutil.copy(Path(skip_report.__file__), tmp_path / "conftest.py")
    (tmp_path / "test_cases.py").write_text(CASES.format(other=other))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "CAMSERVE_SLOW")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **({"CI": "true"} if ci else {})}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command += ["-p", "xdist", "-n", str(workers)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert [each for each in words if each not in done.stdout] == []
