"""Imports point one way, and the archive's package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"
MODULES = sorted(path for path in (HANDLERS / "camserve").rglob("*.py"))

NO_TORCH = (
    *("errors", "config", "labels", "request", "messages", "options", "negotiate", "body", "kserve", "kserve_reply", "geometry"),
    *("response", "render"),
)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it the import stands, but not those for type checkers only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    """`capture.eager` for `camserve/capture/eager.py`."""
    return ".".join(path.relative_to(HANDLERS / "camserve").with_suffix("").parts)


@pytest.mark.parametrize("path", [path for path in MODULES if not name_of(path).startswith("tools")], ids=name_of)
def test_only_the_handler_knows_torchserve_and_nothing_knows_the_tools(path: Path) -> None:
    """The pipeline can be hosted elsewhere, and what no archive holds is not needed in one."""
    names = imported(path)

    assert not {name for name in names if name.split(".")[0] in ("ts", "captum", "gradcam_handler")}
    assert not {name for name in names if name.startswith("camserve.tools")}


@pytest.mark.parametrize("name", ["cam", "render"])
def test_capture_formulas_and_rendering_do_not_know_each_other(name: str) -> None:
    """They meet in the pipeline only."""
    others = {"camserve.capture", "camserve.cam", "camserve.render"} - {f"camserve.{name}"}
    assert not others & imported(HANDLERS / "camserve" / f"{name}.py")
    for path in (HANDLERS / "camserve" / "capture").glob("*.py"):
        assert not {"camserve.cam", "camserve.render"} & imported(path)


@pytest.mark.parametrize("name", [name for name in NO_TORCH if name not in ("request", "body", "kserve", "options", "response")])
def test_what_needs_no_torch_does_not_import_it(name: str) -> None:
    """Parsing and replying stay quick to load and to test."""
    assert not {each for each in imported(HANDLERS / "camserve" / f"{name}.py") if each.split(".")[0] in ("torch", "torchvision")}


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import camserve` in a client's program costs nothing."""
    code = "import camserve, sys; print(sorted({'torch', 'numpy', 'cv2', 'PIL', 'requests'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HANDLERS)

    assert found.stdout.strip() == "[]"
