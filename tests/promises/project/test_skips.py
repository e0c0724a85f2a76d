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

def test_other(): {body}
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("body", "ci", "status", "words"),
    [
        ("pass\n\n@pytest.mark.gpu\ndef test_gpu(): pass", True, 0, "1  test_cases.py                    needs a CUDA device"),
        ("pass", True, 0, "1  test_cases.py                    slow: CAMSERVE_SLOW=1 runs it"),
        ("pytest.skip('no such tool')", False, 0, "1  test_cases.py                    no such tool"),
        ("pytest.skip('no such tool')", True, 1, "CI fails: test_cases.py was skipped: no such tool"),
    ],
)
def test_a_skip_is_listed_and_fails_in_ci_without_a_good_reason(
    tmp_path: Path, body: str, ci: bool, status: int, words: str, workers: str
) -> None:
    """A missing GPU and a slow test are good reasons; any other fails the run where CI is set; also where tests run side by side."""
    shutil.copy(Path(skip_report.__file__), tmp_path / "conftest.py")
    (tmp_path / "test_cases.py").write_text(CASES.format(body=body))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "CAMSERVE_SLOW")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", **({"CI": "true"} if ci else {})}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command += ["-n", workers]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stdout
