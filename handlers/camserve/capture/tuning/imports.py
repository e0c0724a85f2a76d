"""What TorchServe's modules import for explanations of their own, which take half a second and 30 MB of each worker."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

CAPTUM = ("captum", "captum.attr")


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
