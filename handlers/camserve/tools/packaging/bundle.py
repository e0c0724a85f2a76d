"""Carries the modules that a model's file needs and TorchServe does not bring into an archive, with their licences."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from camserve.tools.archive import fresh
from camserve.tools.archive.fresh.modules import canonical
from camserve.tools.console import ToolError

LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
PROGRAMS = Path(fresh.__file__).with_name("__main__.py")
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc")

START = "import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
"""Runs a file without its folder on the path: our modules would hide Python's own of the same name."""


def needed_modules(model_file: Path, staging: Path, requirements: Path | None = None) -> dict[str, Path]:
    """Name and file of each module to bundle, found by loading the model's file in a process of its own.

    `staging` holds what goes into the archive anyway; what `requirements` names TorchServe installs.

    Raises:
        ToolError: the file does not load, or it needs a module that an archive cannot carry.
    """
    files = [model_file, staging, *([requirements] if requirements else [])]
    found = in_fresh_process("needs", *(str(each.resolve()) for each in files))
    if "error" in found:
        refused: Mapping[str, str] = found["refused"]
        for name, reason in refused.items():
            if f"'{name}'" in found["error"]:
                raise ToolError(
                    f"{model_file} needs {name}, which {reason} and cannot be carried in an archive, and TorchServe's own "
                    f"environment does not bring it; use a model's file that does without"
                )
        raise ToolError(f"{model_file} does not load: {found['error']}")
    return {name: Path(origin) for name, origin in found["modules"].items()}


def in_fresh_process(program: str, *arguments: str) -> Any:
    """What a program of `fresh` finds, in a process that inherits no Python path of this one's.

    Raises:
        ToolError: the process ended without a result; its last words are repeated.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # one picture gains nothing by more, and loses much on a busy machine
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-c", START, str(PROGRAMS), program, str(result), *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if not result.exists():
            last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
            raise ToolError(f"the process that loads the model ended with status {done.returncode}: {' '.join(last)}")
        return json.loads(result.read_text())


def bundle(modules: Mapping[str, Path], staging: Path) -> list[str]:
    """Copies modules into `staging`; returns the distributions that they come from."""
    by_module = metadata.packages_distributions()
    distributions: list[str] = []
    for name, origin in modules.items():
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, staging / name, ignore=SKIPPED, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(origin, staging / origin.name)
        distributions += by_module.get(name, [])
    return distributions


def copy_licences(distributions: Iterable[str], staging: Path) -> None:
    """Puts each distribution's licence files into `licenses/NAME-VERSION/`; where it has none, what its metadata says."""
    for name in dict.fromkeys(distributions):
        distribution = metadata.distribution(name)
        folder = staging / "licenses" / f"{canonical(name)}-{distribution.version}"
        folder.mkdir(parents=True, exist_ok=True)
        files = [file for file in distribution.files or () if file.name.upper().startswith(LICENCE_FILES)]
        texts = [Path(str(file.locate())) for file in files if file.suffix not in (".py", ".pyc")]
        for path in texts:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        if not any(folder.iterdir()):
            fields = (
                distribution.metadata.get_all("License-Expression") or distribution.metadata.get_all("License") or ["unknown"]
            )
            text = f"{name} {distribution.version} has no licence file. Its metadata says: {', '.join(fields)}\n"
            (folder / "LICENSE").write_text(text, "utf-8")
