"""What a worker would import and does not need: captum takes 0.4 s of a core and 30 MB, torch's compiler 2 s and 140 MB."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CAPTUM = ("captum", "captum.attr")
COMPILER = ("torch._dynamo", "torch._dynamo.utils")
ASKED = "is_compile_supported"
"""The function of the compiler that `torchvision.ops` imports, and calls when deterministic pooling of regions is asked for."""


class IntegratedGradients:
    """Stands for captum's class of this name, which is imported and made when something is asked of it.

    Raises:
        ImportError: captum is not installed; when something is asked.
    """

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of protocols, such as those by which objects are copied
            raise AttributeError(name)
        made = importlib.import_module("captum.attr").IntegratedGradients(*self._arguments)
        return getattr(made, name)


@contextmanager
def without_captum() -> Iterator[None]:
    """In this block `captum.attr` has the class above alone, and captum need not be installed; nothing, where it is imported."""
    if CAPTUM[0] in sys.modules:
        yield
        return
    placeholders = {name: ModuleType(name) for name in CAPTUM}
    vars(placeholders[CAPTUM[1]])["IntegratedGradients"] = IntegratedGradients
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in CAPTUM:
            del sys.modules[name]


def defer_compiler() -> None:
    """Let torchvision be imported without torch's compiler, which comes once something of it is used; idempotent.

    Where the compiler is imported already, nothing changes.
    """
    if not any(isinstance(each, _TorchvisionFinder) for each in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


class _TorchvisionFinder:
    """Finds torchvision as Python does, and has it executed while placeholders stand for the compiler."""

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Find torchvision; leave all else to others."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None and "torch" in sys.modules and COMPILER[0] not in sys.modules:
            execute = spec.loader.exec_module

            def execute_sparingly(module: ModuleType) -> None:
                sys.modules.update({each: _CompilerPlaceholder(each) for each in COMPILER})
                try:
                    execute(module)
                finally:
                    _remove_placeholders()

            spec.loader.exec_module = execute_sparingly  # type: ignore[method-assign]
        return spec


class _CompilerPlaceholder(ModuleType):
    """Stands for a module of the compiler, which is imported once `ASKED` is called, or anything else is taken from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(name)
        if name == ASKED:
            return _ask_compiler
        _remove_placeholders()
        return getattr(importlib.import_module(self.__name__), name)


def _ask_compiler(*arguments: Any) -> Any:
    return getattr(importlib.import_module(COMPILER[1]), ASKED)(*arguments)


def _remove_placeholders() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _CompilerPlaceholder):
            del sys.modules[name]
