"""Which modules can be seen: those that TorchServe's own environment brings, those that lie in a folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

SERVER = (
    "torch", "torchvision", "torchserve", "captum", "numpy", "pillow", "pyyaml",
    "opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
"""The distributions of TorchServe's own environment; whatever they require belongs to it."""


def canonical(name: str) -> str:
    """A distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def server_modules() -> frozenset[str]:
    """Top-level modules that TorchServe's own environment brings, the standard library included."""
    library = top_modules(Path(json.__file__).parents[1])  # more than sys.stdlib_module_names: sysconfig's data
    return modules_of((name, "") for name in SERVER) | library | set(sys.stdlib_module_names) | {"__main__"}


def modules_of(distributions: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Top-level modules of installed distributions, each with the name of an extra or "", and of whatever they require."""
    from packaging.requirements import Requirement  # noqa: PLC0415 itself one of TorchServe's environment

    wanted = list(distributions)
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        if (canonical(name), extra) in seen:
            continue
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        seen.add((canonical(name), extra))
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                wanted += [(each.name, chosen) for chosen in ("", *each.extras)]
    brought = {name for name, _ in seen}
    packages = metadata.packages_distributions().items()
    return frozenset(module for module, names in packages if brought & {canonical(name) for name in names})


class Hiding(MetaPathFinder):
    """Takes the place of this process's finders: a top-level module that is not `visible` is not found."""

    def __init__(self, visible: Callable[[str], bool]) -> None:
        self.visible = visible
        self.finders = list(sys.meta_path)
        sys.meta_path[:] = [self]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec, by the finders that stood here before."""
        if path is None and not self.visible(name):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *arguments: Any, **options: Any) -> Iterable[metadata.Distribution]:
        """Installed distributions, as `importlib.metadata` asks for them."""
        return metadata.MetadataPathFinder.find_distributions(*arguments, **options)


class Beside(MetaPathFinder):
    """Finds the modules that lie in `folders`, before any other of their names but those of TorchServe's environment.

    As a context manager it is in force within the block, and forgets what was loaded there.
    """

    def __init__(self, folders: Sequence[Path], server: Collection[str]) -> None:
        self.folders = {name: str(each) for each in reversed(folders) for name in top_modules(each).difference(server)}

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: Any = None) -> ModuleSpec | None:
        """The spec of a top-level module in one of the folders."""
        return PathFinder.find_spec(name, [self.folders[name]]) if path is None and name in self.folders else None

    def __enter__(self) -> None:
        drop(self.folders)
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        drop(self.folders)


def drop(modules: Collection[str]) -> None:
    """Forgets these top-level modules and all in them, so that they are loaded anew."""
    for name in [each for each in sys.modules if each.partition(".")[0] in modules]:
        del sys.modules[name]


def top_modules(directory: Path) -> set[str]:
    """Names of the modules and packages in a folder."""
    return {path.stem for path in directory.glob("*.py")} | {path.parent.name for path in directory.glob("*/*.py")}


def place(module: Any) -> Path:
    """The file or folder that a module was loaded from."""
    return Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "/")).resolve()
