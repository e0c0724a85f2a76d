"""Copies files into the folder that an archive is made of: the user's extra files, and camserve itself."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import camserve
from camserve.core.version import __version__
from camserve.tools.archive.fresh.modules import top_modules
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import LABELS, OWN, SKIPPED, check_module_name


def copy_extra_files(patterns: Iterable[str], staging: Path) -> None:
    """Copies files, wildcards' matches, and folders' contents into `staging`, as torch-model-archiver would.

    Raises:
        ToolError: nothing there, a name that packaging needs itself, or a module that would hide another in the worker.
    """
    for pattern in filter(None, map(str.strip, patterns)):
        for path in _list_matches(pattern):
            if path.name in OWN:
                hint = "; give labels with --labels" if path.name == LABELS else ""
                raise ToolError(f"--extra-files {pattern}: packaging writes {path.name} itself{hint}")
            if not path.exists():
                raise ToolError(f"--extra-files {pattern}: there is nothing of that name")
            if (staging / path.name).exists():
                raise ToolError(f"--extra-files {pattern}: two of the files are named {path.name}")
            copy_entry(path, staging)
    for name in top_modules(staging):
        check_module_name(name, staging / name)


def _list_matches(pattern: str) -> list[Path]:
    """The files and folders that a pattern means; of a folder that it names, what lies in it."""
    matches = [Path(each) for each in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207 patterns may be absolute
    return [path for each in matches for path in (sorted(each.iterdir()) if each.is_dir() else [each])]


def copy_entry(path: Path, staging: Path) -> None:
    """Copies a file, or a folder without Python's caches, into `staging`: contents only, no modes."""
    if path.is_dir():
        shutil.copytree(path, staging / path.name, ignore=SKIPPED, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(path, staging / path.name)


def copy_package(staging: Path) -> Path:
    """Copies the package without its tools and hosts, and the project's licence, into `staging`; returns the handler's file."""
    package = Path(camserve.__file__).parent
    shutil.copytree(package, staging / "camserve", ignore=_ignore_tools(package), copy_function=shutil.copyfile)
    repository = package.parents[1] / "LICENSE"
    licences = [repository, *package.parent.glob("camserve-*.dist-info/licenses/LICENSE")]
    folder = staging / "licenses" / f"camserve-{__version__}"
    for licence in [each for each in licences if each.is_file()][:1]:
        folder.mkdir(parents=True)
        shutil.copyfile(licence, folder / "LICENSE")
    handler = find_spec("gradcam_handler")
    if handler is None or handler.origin is None:
        raise ToolError("gradcam_handler.py is not beside the package camserve; install the project again")
    return Path(handler.origin)


def _ignore_tools(package: Path) -> Any:
    def ignored(folder: str, names: list[str]) -> set[str]:
        return set(SKIPPED(folder, names)) | ({"tools", "hosts"} & set(names) if Path(folder) == package else set())

    return ignored
