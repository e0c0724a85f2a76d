"""Compiles a model with AOTInductor, its layers as further outputs, and runs the package: code for one kind of processor."""

from __future__ import annotations

import json
import platform
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camserve.capture.models.programs.operators import register_operators
from camserve.capture.runtimes.engines import Given, Part
from camserve.capture.runtimes.graph import BEHIND, GRAPH
from camserve.capture.runtimes.outputs import Outputs

PACKAGE = "camserve-runtime.pt2"
"""The package's name in an archive."""

MADE_FOR = "camserve-runtime.json"
"""The name of the file that says which processor and which torch a package was made for."""

FILES = (GRAPH, BEHIND, PACKAGE, MADE_FOR)
"""The names of all files that an archive may hold for a runtime."""


def compile_package(module: Outputs, pictures: Tensor, path: Path) -> None:
    """Compile a module for any number of pictures of this size `[N, C, H, W]`, N at least 2, on the processor of this machine.

    Raises:
        RuntimeError: this torch has no AOTInductor, there is no compiler for C++, or the model cannot be exported.
    """
    compiles = getattr(torch._inductor, "aoti_compile_and_package", None)
    if compiles is None:
        raise RuntimeError("it takes torch 2.6 or newer")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("n", min=1, max=4096)
        program = torch.export.export(module, (pictures[:2],), dynamic_shapes=({0: batch},), strict=False)
        compiles(program, package_path=str(path))
    path.with_name(MADE_FOR).write_text(json.dumps(_describe_machine()), "utf-8")


def _describe_machine() -> dict[str, str]:
    """Say what a package is made for, and runs on: another processor may lack its instructions, which ends the process."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


class PackagedEngine:
    """A package that AOTInductor made of a model with its further outputs.

    Args:
        package: its file.
        names: of its outputs behind the scores.

    Raises:
        RuntimeError: it was made for another processor or another torch; it is not even opened then.
    """

    part: Part | None = None

    def __init__(self, package: Path, names: Sequence[str]) -> None:
        made_for, here = _read_machine(package.with_name(MADE_FOR)), _describe_machine()
        if made_for != here:
            raise RuntimeError(f"the archive's package was compiled for {_say(made_for)}, and this is {_say(here)}")
        register_operators()
        self._run: Any = torch._inductor.aoti_load_package(str(package))
        self._names = tuple(names)
        self._lock = threading.Lock()
        self.names = frozenset(names)

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures, one thread at a time."""
        with self._lock, torch.no_grad():
            scores, *outputs = self._run(pictures.contiguous())
        given = dict(zip(self._names, outputs, strict=True))
        return scores, {name: given[name] for name in names}


def _read_machine(path: Path) -> dict[str, str]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in read.items()} if isinstance(read, dict) else {}


def _say(machine: dict[str, str]) -> str:
    return (
        f"torch {machine.get('torch')} on {machine.get('machine')} with {machine.get('capability')}"
        if machine
        else "nothing known"
    )
