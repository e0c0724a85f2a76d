"""An object store is a store like any other: tried with a server that speaks S3."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.conftest import ROOT
from tests.support.processes.waiting import HANG

PYTHON = ROOT / ".venv-s3" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-s3: scripts/test.sh makes it")
def test_evidence_lies_in_an_object_store() -> None:
    """Whole or not at all, seen by others at once, deleted with what lies beside; a dead one costs evidence, counted."""
    script = ROOT / "tests" / "support" / "environments" / "s3" / "evidence.py"
    account = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**os.environ, **account, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "handlers")))}
    ran = subprocess.run([PYTHON, script], env=environment, capture_output=True, text=True, check=False, timeout=2 * HANG)
    assert ran.returncode == 0, ran.stderr

    assert json.loads(ran.stdout.splitlines()[-1]) == {
        **{"empty": [[], []], "listed": True, "beside": 1, "models": ["m"], "same": True, "deleted": 1, "left": []},
        **{"kept targets": [1, 2], "kept failed": 0.0, "lost failed": 1.0},
    }
