"""What a model's file imports, and which of that an archive must and can carry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType
from typing import Any

from .modules import Beside, Hiding, server_modules, top_modules
from .requirements import read_requirements
from .worker import model_class, words


@dataclass
class Needs:
    """Watches the imports of a model's file; `modules` may be bundled, `refused` may not, with the reason."""

    own: set[str]
    server: frozenset[str]
    find: Callable[[str], ModuleSpec | None]
    modules: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def visible(self, name: str) -> bool:
        """Records a module that the model's file, or what it needs, imports. Optional imports of torch's own stay hidden."""
        if name in self.server or name in self.own or name in self.modules:
            return True
        if importer(sys._getframe(1)) not in self.own.union(self.modules):
            return False
        spec = self.find(name)
        if spec is None:
            return False
        reason = unfit(spec)
        if reason:
            self.refused[name] = reason
            return False
        self.modules.append(name)
        return True


OURS = __name__.partition(".")[0]
"""`camserve`, or in a process of its own `camserve_fresh`."""


def importer(frame: FrameType | None) -> str:
    """The top-level module whose import statement is being carried out."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in ("importlib", "_frozen_importlib", "_frozen_importlib_external", OURS):
            return name
        frame = frame.f_back
    return ""


def unfit(spec: ModuleSpec) -> str:
    """Why a module cannot be carried in an archive; empty if it can."""
    if spec.origin is None:
        return "is a package without __init__.py"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    suffixes = tuple(EXTENSION_SUFFIXES)
    if spec.origin.endswith(suffixes) or any(f.name.endswith(suffixes) for d in folders for f in d.rglob("*")):
        return "has compiled parts"
    return ""


def needs(model_file: str, staging: str, requirements: str = "") -> dict[str, Any]:
    """What the model's file imports beyond TorchServe's environment: `{"modules": {name: path}, "refused": {name: reason}}`.

    What a file of `requirements` names is installed with the archive. An error of the model's file itself is under `error`.
    """
    path, server = Path(model_file).resolve(), server_modules()
    if requirements:
        server |= read_requirements(Path(requirements)).modules
    beside = Beside([Path(staging), path.parent], server)

    def find(name: str) -> ModuleSpec | None:
        return beside.find_spec(name) or PathFinder.find_spec(name)

    found = Needs({path.stem} | top_modules(Path(staging)), server, find)
    sys.meta_path.insert(0, beside)
    Hiding(found.visible)
    result: dict[str, Any] = {}
    try:
        model_class(path.stem)()
    except Exception as error:  # noqa: BLE001 the model's file may raise anything
        result["error"] = words(error)
    modules = {name: spec.origin for name in found.modules if (spec := find(name))}
    return {**result, "modules": modules, "refused": found.refused}
