"""The rooms of the package: imports point one way, and a client's program stays light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
HANDLERS = ROOT / "handlers"
PACKAGE = HANDLERS / "camserve"

ROOMS = ("core", "pictures", "capture", "explain", "monitoring", "protocol", "inspector", "pipeline", "hosts", "tools")
"""From the lowest to the highest: a room imports itself and the rooms before it. The handler stands between pipeline and tools."""

ROOMS_OF_CAPTURE = ("precision", "survey", "base", "models", "alignment", "choose", "tuning", "runtimes", "backend")
"""The same inside of `capture`, whose face, `__init__`, hands on names from all of them."""

WITHOUT_TORCH = ("core", "protocol", "monitoring", "tools.client")
"""What clients and parsers need stays quick to load."""

MOST_LINES = 300
"""Of a module of the product."""

MOST_ENTRIES = 9
"""How many folders and modules of a level can be seen at a glance; `__init__` is not counted."""


def python_files(place: Path) -> Iterator[Path]:
    """The Python files of a folder, or the file itself; what packages bring is not ours."""
    if place.suffix == ".py":
        yield place
    for path in place.rglob("*.py"):
        if "node_modules" not in path.parts:
            yield path


MODULES = sorted(python_files(PACKAGE))


@cache
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
    """`capture.models.eager` for `camserve/capture/models/eager.py`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def ordered(package: str, order: tuple[str, ...]) -> list[Any]:
    """A case for each module inside of a package: the module, the package, and the order of the package's rooms."""
    folder = HANDLERS / package.replace(".", "/")
    paths = [path for path in MODULES if folder in path.parents and path != folder / "__init__.py"]
    return [pytest.param(path, package, order, id=f"{package}:{name_of(path)}") for path in paths]


@pytest.mark.parametrize(
    ("path", "package", "order"), [*ordered("camserve", ROOMS), *ordered("camserve.capture", ROOMS_OF_CAPTURE)]
)
def test_a_room_imports_itself_and_the_rooms_before_it(path: Path, package: str, order: tuple[str, ...]) -> None:
    """So that whoever reads a room need know none of those above."""
    inside = f"{package}."
    room = f"camserve.{name_of(path)}".removeprefix(inside).split(".")[0]
    allowed = order[: order.index(room) + 1]
    for name in imported(path):
        assert not name.startswith(inside) or name.removeprefix(inside).split(".")[0] in allowed, (
            f"{name_of(path)} imports {name}"
        )


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not name_of(path).startswith(("tools", "hosts.child"))], ids=name_of
)
def test_only_the_handler_and_the_tools_know_torchserve(path: Path) -> None:
    """The pipeline can be hosted elsewhere. (`hosts.child` imports TorchServe's context where it is installed, else its stand-in.)"""
    assert not {name for name in imported(path) if name.split(".")[0] in ("ts", "captum", "gradcam_handler")}


LEVELS = sorted({path.parent for part in ("handlers/camserve", "tests", "benchmarks") for path in python_files(ROOT / part)})


@pytest.mark.parametrize("folder", LEVELS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_level_can_be_seen_at_a_glance(folder: Path) -> None:
    """At most nine rooms or modules stand side by side, and each room of the package and of benchmarks says what it is for."""
    names = [
        entry.name
        for entry in folder.iterdir()
        if any(python_files(entry)) and entry.name not in ("__init__.py", "__main__.py", "conftest.py")
    ]
    beside = {"promises", "support", *ROOMS} if folder in (ROOT / "tests", PACKAGE) else set()
    assert len(set(names) - beside) <= MOST_ENTRIES, names
    if ROOT / "tests" not in (folder, *folder.parents):
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert purpose.endswith(".")


@pytest.mark.parametrize("path", [path for path in MODULES if PACKAGE in path.parents], ids=name_of)
def test_a_module_can_be_read_at_one_sitting(path: Path) -> None:
    """TorchServe's handler has to be one file, and is longer."""
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither in the product nor in what tries it."""
    paths = [path for part in ("handlers", "tests", "benchmarks") for path in python_files(ROOT / part)]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("handlers."): path for path in paths}
    graph = {name: imported(path) & modules.keys() for name, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is one


ASKED = """
import importlib, sys
class Refusing:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"{name} is refused")
sys.meta_path.insert(0, Refusing)
for name in sys.argv[2:]:
    importlib.import_module(f"camserve.{name}")
"""
"""Imports modules where some packages are not there."""


def without(refused: str, names: list[str]) -> None:
    """Imports all these modules in a process that has none of the packages `refused`."""
    found = subprocess.run(
        [sys.executable, "-c", ASKED, refused, *names], capture_output=True, text=True, check=False, cwd=HANDLERS
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_import_it(room: str) -> None:
    """Parsing, replying, watching and asking stay quick to load and to test."""
    names = [name_of(path).removesuffix(".__init__") for path in MODULES if name_of(path).startswith(f"{room}.")]
    assert names
    without("torch,torchvision", names)


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import camserve` in a client's program costs nothing."""
    code = "import camserve, sys; print(sorted({'torch', 'numpy', 'cv2', 'PIL', 'requests'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HANDLERS)

    assert found.stdout.strip() == "[]"
