"""What a model's file imports, and which of that an archive must and can carry."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType
from typing import Any

from .modules import Beside, Hiding, server_modules, top_modules
from .requirements import read_requirements
from .worker import model_class, words


@dataclass
class Needs:
    """Watches the imports of a model's file, and of what it needs.

    Attributes:
        own: the model's file, and what goes into the archive anyway.
        users: what else lies beside these: code of the user's, no library.
        wanted: modules that proved to be needed, though a library only tries to import them.
        modules: what may be bundled, each with the module that imports it.
        refused: what may not, with the reason.
        withheld: what a library only tries to import, or asks for; it is not found, as on a server without it.
    """

    own: set[str]
    server: frozenset[str]
    find: Callable[[str], ModuleSpec | None]
    users: Collection[str] = ()
    wanted: Collection[str] = ()
    modules: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)

    def visible(self, name: str) -> bool:
        """Records a module that the model's file, or what it needs, imports. Optional imports of torch's own stay hidden."""
        if name in self.server or name in self.own or name in self.modules:
            return True
        frame = importing(sys._getframe(1))
        by = module_of(frame)
        if frame is None or by not in self.own.union(self.modules):
            return False
        spec = self.find(name)
        if spec is None:
            return False
        if by not in self.own.union(self.users) and name not in self.wanted and tries(frame):
            self.withheld.add(name)
            return False
        reason = unfit(spec)
        if reason:
            self.refused[name] = reason
            self.roots[name] = self._root(name, by)
            return False
        self.modules[name] = by
        return True

    def _root(self, name: str, by: str) -> str:
        """The module that the user's own file imports, through which `name` is needed."""
        while by not in self.own and by in self.modules:
            name, by = by, self.modules[by]
        return name


OURS = __name__.partition(".")[0]
"""`camserve`, or in a process of its own `camserve_fresh`."""


def module_of(frame: FrameType | None) -> str:
    """The top-level module whose code a frame runs."""
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]


def importing(frame: FrameType | None) -> FrameType | None:
    """The frame whose import statement is being carried out, or which asks whether a module is there."""
    while frame is not None and module_of(frame) in ("importlib", "_frozen_importlib", "_frozen_importlib_external", OURS):
        frame = frame.f_back
    return frame


def tries(frame: FrameType) -> bool:
    """Says whether code does without the module that it imports: it catches the error, or only asks whether it is there."""
    inner = sys._getframe(1)
    asked: FrameType | None = inner
    while asked is not None and asked is not frame:
        if asked.f_code.co_name == "find_spec" and asked.f_globals.get("__name__") == "importlib.util":
            return True
        asked = asked.f_back
    return any(frame.f_lineno in lines for lines in tried_lines(frame.f_code.co_filename))


@cache
def tried_lines(file: str) -> tuple[range, ...]:
    """The lines of a source file whose ImportError is caught there."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()
    tried = [
        node for node in ast.walk(tree) if isinstance(node, ast.Try) and any(_catches(handler.type) for handler in node.handlers)
    ]
    return tuple(range(node.body[0].lineno, (node.body[-1].end_lineno or node.body[-1].lineno) + 1) for node in tried)


def _catches(caught: ast.expr | None) -> bool:
    """Says whether an `except` catches that a module is not there."""
    names = {each.id for each in ast.walk(caught) if isinstance(each, ast.Name)} if caught else {"Exception"}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def unfit(spec: ModuleSpec) -> str:
    """Why a module cannot be carried in an archive; empty if it can."""
    if spec.origin is None:
        return "is a package without __init__.py"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    suffixes = tuple(EXTENSION_SUFFIXES)
    if spec.origin.endswith(suffixes) or any(f.name.endswith(suffixes) for d in folders for f in d.rglob("*")):
        return "has compiled parts"
    return ""


def needs(request: str) -> dict[str, Any]:
    """What a model needs beyond TorchServe's environment to be built, and to run once.

    Args:
        request: JSON: `model_file`, `folders` in which the modules beside it lie, the first of which goes into the archive
            anyway, `requirements` (empty: none), whose packages are installed with the archive, `shape` of its input (empty: it
            is not run), and `wanted`: modules that are needed though a library only tries to import them.

    Returns:
        `modules` with the file of each, `refused` with the reason, `roots`: through which module of the user's own imports each
        of these is needed, `withheld`: what libraries only try to import, and, where the model's file fails, `error`, and
        `blamed`: those of `withheld` that the error names.
    """
    asked = json.loads(request)
    path, server = Path(asked["model_file"]), server_modules()
    folders = [Path(folder) for folder in asked["folders"]]
    if asked["requirements"]:
        server |= read_requirements(Path(asked["requirements"])).modules
    beside = Beside([*folders, path.parent], server)

    def find(name: str) -> ModuleSpec | None:
        return beside.find_spec(name) or PathFinder.find_spec(name)

    staged = top_modules(folders[0]) if folders else set()
    found = Needs({path.stem} | staged, server, find, set(beside.folders), asked["wanted"])
    sys.meta_path.insert(0, beside)
    Hiding(found.visible)
    result: dict[str, Any] = {}
    try:
        _try_model(path.stem, asked["shape"])
    except Exception as error:  # noqa: BLE001 the model's file may raise anything
        result["error"] = text = " from ".join(_tell(error))
        result["blamed"] = sorted(name for name in found.withheld if re.search(rf"\b{re.escape(name)}\b", text))
    modules = {name: spec.origin for name in found.modules if (spec := find(name))}
    return {**result, "modules": modules, "refused": found.refused, "roots": found.roots, "withheld": sorted(found.withheld)}


def _try_model(module: str, shape: Sequence[int]) -> None:
    """Builds the model, and runs it once: some libraries import what they need when they are used."""
    model: Any = model_class(module)()
    if shape:
        import torch  # noqa: PLC0415 only here

        with torch.no_grad():
            model.eval()(torch.zeros(*shape))


def _tell(error: BaseException | None) -> Iterator[str]:
    """What an error says, and those that it comes from."""
    while error is not None:
        yield words(error)
        error = error.__cause__ or error.__context__
