"""An archive's file of requirements (pip's format), which TorchServe installs before it loads the model."""

from __future__ import annotations

import shutil
from pathlib import Path

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
