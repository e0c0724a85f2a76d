"""An archive's file of requirements (pip's format), which TorchServe installs before it loads the model."""

from __future__ import annotations

import shutil
from pathlib import Path

from camserve.tools.archive.fresh.requirements import required
from camserve.tools.console import ToolError
from camserve.tools.packaging.staging import OWN


def take(file: Path, stage: Path) -> Path:
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


def check(file: Path) -> tuple[str, ...]:
    """What to say of a file of requirements; packaging loads what they name, and so does the check in a fresh process.

    Raises:
        ToolError: some are not installed.
    """
    found = required(file)
    if found.missing:
        words = " ".join(f"'{each}'" for each in found.missing)
        raise ToolError(
            f"the archive's {file.name} asks for {', '.join(found.missing)}, which packaging needs too, to try the archive, and "
            f"which is not installed here: pip install {words}"
        )
    notes = [f"Requirements: {file.name}; TorchServe installs them where its configuration has install_py_dep_per_model=true"]
    notes += [f"Warning: the archive was tried without {each}, which {file.name} asks for" for each in found.others]
    notes += [f"Warning: {file.name}: nothing tells which distribution {each} is" for each in found.unnamed]
    return tuple(notes)
