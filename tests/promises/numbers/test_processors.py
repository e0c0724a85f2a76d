"""The tests of numbers hold with the kernels of a processor without AVX-512, whatever this one has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from tests.support.processes.waiting import HANG

FILES = (
    "tests/capture/choose/gradients/test_closed_form.py",
    "tests/capture/tuning/test_fold.py",
    "tests/capture/tuning/test_memory_format.py",
    "tests/capture/tuning/test_prepack.py",
    "tests/pipeline/test_handler.py",
    "tests/promises/contract/test_archive_modes.py",
    "tests/promises/contract/test_packaged_architectures.py",
    "tests/promises/numbers/test_closeness.py",
)
QUICK = (
    "(precision_and or a_runtime_answers or closeness or fold or prepacked or test_gradients or keep_something)"
    " or (tuned_model and closed) or (eager and mobilenet_v3_small)"
)
"""By parts of tests' names: those in which results of different kernels meet. scripts/test_processors.sh runs all."""


@pytest.mark.slow  # what it guards is other processors' rounding, which few changes touch
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other kernels are a matter of x86 processors")
def test_the_numbers_hold_with_the_kernels_of_another_processor(pytestconfig: pytest.Config) -> None:
    """In a process of its own: torch chooses its kernels once."""
    program = [
        "bash",
        str(pytestconfig.rootpath / "scripts" / "test_processors.sh"),
        "--only",
        "avx2",
        "1",
        "-x",
        "-k",
        QUICK,
        *FILES,
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("CAMSERVE_SLOW", "CI")}
    done = subprocess.run(
        program, env=environment | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=3 * HANG, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
