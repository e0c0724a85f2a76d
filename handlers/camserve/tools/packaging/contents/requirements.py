"""An archive's file of requirements (pip's format), which TorchServe installs before it loads the model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from camserve.tools.archive.fresh.modules import canonical
from camserve.tools.archive.fresh.requirements import read_requirements
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import OWN


def copy_requirements(file: Path, stage: Path) -> Path:
    """Copies a file of requirements into `stage`, and returns its place there.

    Raises:
        ToolError: no such file, another one of that name, or one that packaging writes itself.
    """
    if not file.is_file():
        raise ToolError(f"--requirements: there is no file {file}")
    if file.name in OWN:
        raise ToolError(f"--requirements {file}: packaging writes {file.name} itself; rename it")
    if (stage / file.name).exists():
        raise ToolError(f"--requirements {file}: another file of the archive has this name; rename one")
    return Path(shutil.copyfile(file, stage / file.name))


def require_distributions(modules: Iterable[str]) -> list[str]:
    """Returns the lines of a file of requirements for these modules: their distributions, at the releases installed here."""
    brought = metadata.packages_distributions()
    names = dict.fromkeys(canonical(name) for module in modules for name in brought.get(module, [])[:1])
    return [f"{name}=={metadata.version(name)}" for name in names]


def add_requirements(modules: Iterable[str], file: Path | None, stage: Path) -> Path:
    """Adds these modules' distributions to a file of requirements in `stage`, or writes one; returns its path.

    Raises:
        ToolError: another file of the archive has its name.
    """
    path = file or stage / "requirements.txt"
    if file is None and path.exists():
        raise ToolError(f"another file of the archive is named {path.name}, which packaging writes; give it with --requirements")
    given = path.read_text("utf-8") if path.exists() else ""
    lines = [given.rstrip("\n")] if given.strip() else []
    named = {canonical(re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0]) for line in given.splitlines()}
    added = [line for line in require_distributions(modules) if canonical(line.partition("==")[0]) not in named]
    path.write_text("\n".join([*lines, *added]) + "\n", "utf-8")
    return path


def check_requirements(file: Path) -> tuple[str, ...]:
    """Checks that what a file names is installed here, since packaging loads the model too; returns what the user should hear.

    Raises:
        ToolError: some of it is not installed.
    """
    requirements = read_requirements(file)
    if requirements.missing:
        words = " ".join(f"'{each}'" for each in requirements.missing)
        raise ToolError(
            f"the archive's {file.name} asks for {', '.join(requirements.missing)}, which packaging needs too, to try the "
            f"archive, and which is not installed here: pip install {words}"
        )
    notes = [f"Requirements: {file.name}; TorchServe installs them where its configuration has install_py_dep_per_model=true"]
    notes += [f"Warning: the archive was tried without {each}, which {file.name} asks for" for each in requirements.others]
    notes += [f"Warning: {file.name}: nothing tells which distribution {each} is" for each in requirements.unnamed]
    return tuple(notes)
