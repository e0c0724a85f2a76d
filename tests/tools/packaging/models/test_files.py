"""Models of the user's own files: which classes are taken, and which programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.models.tiny import write_model

from camserve.tools.console import ToolError
from camserve.tools.packaging.models.files import load_model_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "exactly one class, got none"),
        ("class A: pass\nclass B: pass", "exactly one class, got A, B"),
        ("class A:\n    def __init__(self, size): pass", r"A\(\) failed, .* without arguments \(A\(size\)\): TypeError"),
        ("class A: pass", r"A\(\) gives a A, not a torch\.nn\.Module"),
        ("import nosuchmodule", "does not load: ModuleNotFoundError: No module named 'nosuchmodule'"),
    ],
)
def test_a_model_file_that_torchserve_would_not_take_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The stock convention is one class that is built without arguments."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").write_text(text)
    with pytest.raises(ToolError, match=message):
        load_model_file(tmp_path / "tiny.py", tmp_path / "tiny.pth", tmp_path / "none")


@pytest.mark.parametrize("name", ["types", "torch", "camserve", "my-model"])
def test_a_model_file_that_would_hide_another_module_is_refused(tmp_path: Path, name: str) -> None:
    """An archive's folder comes before the standard library in a worker."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").rename(tmp_path / f"{name}.py")
    with pytest.raises(ToolError, match="rename it"):
        load_model_file(tmp_path / f"{name}.py", tmp_path / "tiny.pth", tmp_path / "none")
