"""The modules that a model's file needs: which are bundled, and which cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.models.tiny import write_model

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.modules import find_needed_modules

pytestmark = pytest.mark.usefixtures("forked")


def test_modules_beside_the_file_and_pure_ones_are_bundled(tmp_path: Path) -> None:
    """What torch brings is not; an import that the file can do without is not either, where it cannot be carried."""
    imports = "import beside, sortedcontainers, yaml, torchvision\ntry:\n    import scipy\nexcept ImportError:\n    pass"
    write_model(tmp_path, imports=imports)
    (tmp_path / "beside.py").write_text("import iniconfig\n")
    assert set(find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")) == {"beside", "sortedcontainers", "iniconfig"}


def test_files_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is relative to the user's folder is not looked for in the folder of the process that loads it."""
    write_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_needed_modules(Path("tiny.py"), Path("none")) == {}


def test_a_compiled_module_is_refused(tmp_path: Path) -> None:
    """An archive cannot carry it, and the message says which."""
    write_model(tmp_path, imports="import scipy")
    with pytest.raises(ToolError, match="needs scipy, which has compiled parts and cannot be carried"):
        find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")


def test_a_models_file_may_need_what_the_requirements_name(tmp_path: Path) -> None:
    """Such a module is not bundled; without requirements it is."""
    write_model(tmp_path, imports="import sortedcontainers")
    (tmp_path / "r.txt").write_text("sortedcontainers\n")
    assert set(find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")) == {"sortedcontainers"}
    assert find_needed_modules(tmp_path / "tiny.py", tmp_path / "none", tmp_path / "r.txt") == {}
