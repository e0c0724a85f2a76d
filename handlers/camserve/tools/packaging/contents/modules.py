"""Carries the modules that a model's file needs and TorchServe does not bring into an archive, with their licences."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from camserve.tools.archive import fresh_process
from camserve.tools.archive.fresh.modules import canonical
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import SKIPPED

LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")


def find_needed_modules(model_file: Path, staging: Path, requirements: Path | None = None) -> dict[str, Path]:
    """Finds name and file of each module to bundle, by loading the model's file in a process of its own.

    `staging` holds what goes into the archive anyway; what `requirements` names TorchServe installs.

    Raises:
        ToolError: the file does not load, or it needs a module that an archive cannot carry.
    """
    files = [model_file, staging, *([requirements] if requirements else [])]
    needs = fresh_process.run_fresh("needs", *(str(each.resolve()) for each in files))
    if "error" in needs:
        refused: Mapping[str, str] = needs["refused"]
        for name, reason in refused.items():
            if f"'{name}'" in needs["error"]:
                raise ToolError(
                    f"{model_file} needs {name}, which {reason} and cannot be carried in an archive, and TorchServe's own "
                    f"environment does not bring it; use a model's file that does without"
                )
        raise ToolError(f"{model_file} does not load: {needs['error']}")
    return {name: Path(origin) for name, origin in needs["modules"].items()}


def copy_modules(modules: Mapping[str, Path], staging: Path) -> list[str]:
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
