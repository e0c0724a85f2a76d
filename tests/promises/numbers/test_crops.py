"""The crops that monitoring is tried on: made by README's command after nothing but the demo's set-up."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.drift import crops
from PIL import Image

BARE = [sys.executable, "-S"]
"""A Python with its standard library alone, as a system's."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a clone that are needed, without an environment."""
    root = tmp_path / "clone"
    (root / "benchmarks" / "drift").mkdir(parents=True)
    (root / "examples").mkdir()
    shutil.copy(crops.__file__, root / "benchmarks" / "drift")
    for path in crops.EXAMPLES.glob("*.jpg"):
        shutil.copy(path, root / "examples")
    return root


def test_a_python_that_lacks_what_is_needed_hands_over_to_the_environment(clone: Path) -> None:
    """With the arguments as they were given."""
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    command = [*BARE, "benchmarks/drift/crops.py", "out/good", "--count", "3", "--spoil", "dark"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "3 crops of" in done.stdout
    pictures = [path.read_bytes() for path in sorted((clone / "out" / "good").iterdir())]
    assert [Image.open(io.BytesIO(each)).size for each in pictures] == [(crops.SIDE, crops.SIDE)] * 3


def test_without_an_environment_it_is_said_what_makes_one(clone: Path) -> None:
    """One line, no traceback."""
    done = subprocess.run([*BARE, "benchmarks/drift/crops.py", "out"], cwd=clone, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("error: this Python lacks NumPy, Pillow or rich; scripts/setup.sh makes")
    assert done.stderr.count("\n") == 1


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[list[bytes], str]:
    """The pictures of a run in this process, and the last line that it printed."""
    monkeypatch.setattr(sys, "argv", ["crops.py", str(folder), "--count", "8"])
    crops.main()
    return [path.read_bytes() for path in sorted(folder.iterdir())], capsys.readouterr().out.splitlines()[-1]


def test_without_scikit_learn_the_crops_are_of_the_photographs_of_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's environment has none; that they are fewer is said."""
    crops.photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(crops, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    pictures, said = made(tmp_path / "few", monkeypatch, capsys)

    assert len(set(pictures)) == 8
    assert "8 crops of 3 photographs (cat, coffee, rocket)" in said
    assert "china and flower would come with scikit-learn" in said


def test_with_scikit_learn_the_crops_are_of_all_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as the drift tests' and the benchmarks', for the same seed."""
    pictures, said = made(tmp_path / "all", monkeypatch, capsys)

    assert said.endswith(f"8 crops of 5 photographs (cat, coffee, rocket, china, flower) in {tmp_path / 'all'}")
    assert pictures == list(crops.traffic(8, dict.fromkeys(crops.NAMES, 1.0), 0))
