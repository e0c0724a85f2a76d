"""Runs torch-model-archiver on a model and a folder of files."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import PROGRAM, WEIGHTS
from camserve.tools.packaging.models.source import ModelSource


@dataclass(frozen=True)
class Parts:
    """What an archive holds besides its model: a folder of files, the handler, the settings, and a file of requirements."""

    folder: Path
    handler: Path
    settings: Path
    requirements: Path | None = None


def build_archive(source: ModelSource, parts: Parts, store: Path, *, name: str, version: str) -> Path:
    """Runs torch-model-archiver, and returns the archive, `store/NAME.mar`.

    Raises:
        ToolError: two files of one name; or, in the archiver's own words, why it failed.
    """
    weights = place_weights(source, parts.settings.parent)
    named = [weights, parts.settings, parts.handler, *([source.model_file] if source.model_file else [])]
    _check_names(named, parts.folder)
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", name, "--version", version]
    command += ["--model-file", str(source.model_file.resolve())] if source.model_file else []
    command += ["--serialized-file", str(weights), "--handler", str(parts.handler), "--extra-files", str(parts.folder)]
    command += ["--requirements-file", str(parts.requirements)] if parts.requirements else []
    command += ["--config-file", str(parts.settings), "--export-path", str(store), "--archive-format", "zip-store"]
    with tempfile.TemporaryDirectory(prefix="camserve-") as temporary:  # the archiver deletes what it finds there
        environment = {**os.environ, "TMPDIR": temporary}
        done = subprocess.run(command, env=environment, cwd=temporary, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"torch-model-archiver failed: {' '.join(done.stderr.split()[-40:])}")
    return store / f"{name}.mar"


def place_weights(source: ModelSource, folder: Path) -> Path:
    """Puts the weights into `folder`, once, under their name in the archive. A file is linked: it may be gigabytes large."""
    path = folder / (source.stored_as or (WEIGHTS if source.model_file else PROGRAM))
    if path.exists():
        return path
    if source.weights is None:
        torch.save(source.model.state_dict(), path)
    else:
        path.symlink_to(source.weights.resolve())
    return path


def _check_names(files: Sequence[Path], staging: Path) -> None:
    """Refuses a file of `staging` that would take the place of another one: the archiver copies them last."""
    names = [file.name for file in files]
    for file in files:
        beside = staging / file.name
        if names.count(file.name) > 1 or beside.is_dir() or (beside.exists() and not filecmp.cmp(file, beside, shallow=False)):
            raise ToolError(f"the archive would hold two files of the name {file.name}, which packaging needs; rename one")
