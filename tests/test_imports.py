"""Imports point one way, and the archive's package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"
MODULES = sorted(path for path in (HANDLERS / "camserve").rglob("*.py"))

WITH_TORCH = ("batch", "cam", "compose", "describe", "explainer", "groups", "images", "page", "prepare")
"""What needs torch, `capture` aside: the model, its input, or one that does. Every other module of an archive does without."""
TORCH = {"torch", "torchvision"}


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


SHIPPED = [name_of(path) for path in MODULES if name_of(path).split(".")[0] not in ("tools", "__init__")]
NO_TORCH = [name for name in SHIPPED if name not in WITH_TORCH and not name.startswith("capture.")]

ASKED = """
import importlib, sys
asked = []
class Refusing:
    def find_spec(name, path=None, target=None):
        if name in ("torch", "torchvision"):
            asked.append(name)
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refusing)
for name in sys.argv[1:]:
    asked.clear()
    try:
        importlib.import_module(f"camserve.{name}")
    except ModuleNotFoundError:
        assert asked
    if asked:
        print(name)
"""
"""Prints those of the modules that it is given which ask for torch; none gets it, so that each asks anew."""


@pytest.mark.parametrize("name", NO_TORCH)
def test_what_needs_no_torch_does_not_import_it(name: str) -> None:
    """Parsing, replying and watching stay quick to load and to test; not within a function either."""
    path = HANDLERS / "camserve" / Path(*name.split(".")).with_suffix(".py")
    assert not {each for each in imported(path) if each.split(".")[0] in TORCH}


def test_what_needs_no_torch_imports_nothing_that_does() -> None:
    """By what is really imported; and what is said to need torch does."""
    found = subprocess.run([sys.executable, "-c", ASKED, *SHIPPED], capture_output=True, text=True, check=True, cwd=HANDLERS)
    asking = set(found.stdout.split())

    assert sorted(asking.intersection(NO_TORCH)) == []
    assert sorted(asking.intersection(WITH_TORCH)) == sorted(WITH_TORCH)


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import camserve` in a client's program costs nothing."""
    code = "import camserve, sys; print(sorted({'torch', 'numpy', 'cv2', 'PIL', 'requests'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HANDLERS)

    assert found.stdout.strip() == "[]"
