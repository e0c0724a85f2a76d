"""Finds what builds the model in a Python file of the user's: a class, or a function."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from camserve.core.text import find_nearest, in_one_line
from camserve.tools.console import ToolError


@dataclass(frozen=True)
class Builder:
    """A class, or a function that returns a module.

    Attributes:
        name: in the user's file.
        arguments: what it is called with, by name.
        why: why it was chosen, where another could have been.
    """

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def is_class(self) -> bool:
        """Whether this is a class."""
        return inspect.isclass(self.call)

    @property
    def takes_arguments(self) -> bool:
        """Whether it can be called with these arguments, no more and no fewer."""
        signature = _signature(self.call)
        try:
            return signature is None or signature.bind(**self.arguments) is not None
        except TypeError:
            return False

    def build(self, model_file: Path) -> nn.Module:
        """Builds the model.

        Raises:
            ToolError: it cannot be built so, or is no module.
        """
        signature = _signature(self.call)
        shown = f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
        try:
            model = self.call(**self.arguments)
        except Exception as error:
            how = f"{'' if self.arguments else ', called without arguments'} ({self.name}{signature or '(...)'})"
            raise ToolError(f"{model_file}: {shown} failed{how}: {in_one_line(error)}{self._advise(signature)}") from error
        if not isinstance(model, nn.Module):
            raise ToolError(
                f"{model_file}: {shown} gives a {type(model).__name__}, not a torch.nn.Module; --class names the class, or the "
                "function that returns the model"
            )
        return model

    def _advise(self, signature: inspect.Signature | None) -> str:
        """What to do where the arguments are not those that it takes."""
        if signature is None:
            return ""
        if self.takes_arguments:
            return ""
        needed = [each.name for each in signature.parameters.values() if each.default is each.empty and each.kind not in _REST]
        example = ", ".join(f'"{name}": ...' for name in needed) or "..."
        return f"; --model-args '{{{example}}}' gives arguments, as JSON"


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _signature(call: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):
        return None


def import_file(model_file: Path) -> ModuleType:
    """Imports a file by its name, from wherever `sys.meta_path` finds it.

    Raises:
        ToolError: it does not load.
    """
    try:
        return importlib.import_module(model_file.stem)
    except Exception as error:
        raise ToolError(f"{model_file} does not load: {in_one_line(error)}") from error


def list_classes(module: ModuleType) -> list[type]:
    """The classes that a module defines itself, as TorchServe lists them."""
    return [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]


def find_builders(module: ModuleType, model_file: Path, name: str | None, arguments: Mapping[str, Any]) -> list[Builder]:
    """Finds what may build the model: what `name` says, or each class, or else function, that is no part of another one.

    Raises:
        ToolError: nothing does.
    """
    classes = list_classes(module)
    functions = [each for _, each in inspect.getmembers(module, inspect.isfunction) if each.__module__ == module.__name__]
    if name is not None:
        return [Builder(name, _find_named(module, model_file, name, [*classes, *functions]), arguments)]
    parts = _find_parts(model_file)
    networks = classes if len(classes) == 1 else [each for each in classes if issubclass(each, nn.Module)]
    public = [each for each in functions if not each.__name__.startswith("_")]
    found: list[list[Builder]] = []
    for kind in (networks, public):
        whole: Sequence[Callable[..., Any]] = [each for each in kind if each.__name__ not in parts]
        why = "which is no part of another" if len(whole) == 1 < len(kind) else ""
        builders = [Builder(each.__name__, each, arguments, why) for each in whole]
        found += [[each for each in builders if each.takes_arguments], builders]
    chosen = next((each for each in (found[0], found[2], found[1], found[3]) if each), [])
    if not chosen:
        raise ToolError(
            f"{model_file} defines neither a torch.nn.Module nor a function that builds one; --class names what it imports"
        )
    return chosen


def _find_named(module: ModuleType, model_file: Path, name: str, there: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if name.isidentifier() and callable(found):
        return found  # type: ignore[no-any-return]
    names = [each.__name__ for each in there]
    near = find_nearest(name, names, 1)
    hint = f"the nearest is {near[0]}" if near else f"it defines {', '.join(names) or 'neither class nor function'}"
    raise ToolError(f"--class {name}: {model_file} has no class or function of that name; {hint}")


def _find_parts(model_file: Path) -> set[str]:
    """Names of the classes and functions that another class or function of the file uses, directly or through others.

    A function that builds a class does not make that a part: only classes do, and functions of functions.
    """
    definitions = {each.name: each for each in _list_definitions(ast.parse(model_file.read_text("utf-8-sig")).body)}
    uses = {name: _names_in(node, definitions) - {name} for name, node in definitions.items()}
    parts: set[str] = set()
    for name, node in definitions.items():
        reached = _reach(name, uses)
        parts |= reached if isinstance(node, ast.ClassDef) else {each for each in reached if not _is_class(definitions[each])}
    return parts


def _is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def _list_definitions(body: Sequence[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The definitions of a module, also those behind an `if` or `try`."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _list_definitions([each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)])


def _names_in(node: ast.AST, names: Collection[str]) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each.id in names}


def _reach(name: str, uses: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = set(uses[name])
    while waiting:
        each = waiting.pop()
        if each not in reached:
            reached.add(each)
            waiting |= uses[each]
    return reached - {name}
