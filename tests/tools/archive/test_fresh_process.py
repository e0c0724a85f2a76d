"""A program of `fresh` in a process of its own: what it inherits, and how its failure is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camserve.tools.archive.fresh_process import run_fresh
from camserve.tools.console import ToolError


def test_a_fresh_process_inherits_no_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor this process's modules: a server would not have them."""
    (tmp_path / "only_here.py").write_text("")
    (tmp_path / "own.py").write_text("import only_here\nclass Own: pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "own.py").rename(tmp_path / "model" / "own.py")
    model = str(tmp_path / "model" / "own.py")
    needs = run_fresh("needs", json.dumps({"model_file": model, "folders": [], "requirements": "", "shape": [], "wanted": []}))
    assert "No module named 'only_here'" in needs["error"]


def test_a_process_that_ends_early_is_told_with_its_last_words() -> None:
    """And its exit status."""
    with pytest.raises(ToolError, match=r"ended with status 1: ModuleNotFoundError: No module named 'camserve_fresh\.nosuch'"):
        run_fresh("nosuch")
