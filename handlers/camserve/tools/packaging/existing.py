"""Takes an archive that is served already, and says what of it goes into the one that explains."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camserve.tools.archive.archive import Archive
from camserve.tools.console import ToolError
from camserve.tools.packaging import requirements, sources, staging
from camserve.tools.packaging.bundle import SKIPPED
from camserve.tools.packaging.their_handler import OURS, Adopted, adopt

OWN_FOLDERS = ("MAR-INF", "camserve", "licenses", "__pycache__")


@dataclass(frozen=True)
class Existing:
    """What an archive brings: the model, its settings, its labels, its handler, and its file of requirements in the stage.

    `version` is empty where its manifest has none. `notes`: what the user should hear.
    """

    source: sources.Source
    name: str
    version: str
    settings: Mapping[str, Any]
    explain: Mapping[str, Any]
    labels: Mapping[str, str] | None
    handler: Adopted
    requirements: Path | None = None
    notes: tuple[str, ...] = ()


def read(archive: Archive, workdir: Path, stage: Path, wanted: Path | None = None) -> Existing:
    """Reads an unpacked archive; its extra files are copied into `stage`, a handler that wraps theirs into `workdir`.

    `wanted`: a file of requirements in `stage`, checked already, which takes the place of the archive's own.

    Raises:
        ToolError: its handler is no image classifier, or takes the batch itself; its requirements are not installed; a file
            has a name that packaging needs; or its model cannot be loaded.
    """
    model = archive.manifest["model"]
    model_file, weights, own = (_file(archive, key) for key in ("modelFile", "serializedFile", "requirementsFile"))
    if weights is None:
        raise ToolError("the archive holds no weights (serializedFile), so there is nothing to explain")
    if not model.get("handler"):
        raise ToolError("the archive's manifest names no handler")
    _copy_files(archive, stage)
    notes: tuple[str, ...] = ()
    if wanted is None and own is not None:
        wanted = stage / own.name
        notes = requirements.check(wanted)
    if model_file:
        source = sources.from_file(shutil.copyfile(model_file, workdir / model_file.name), weights, stage)
    else:
        source = sources.from_program(weights)
    labels = archive.directory / staging.LABELS
    return Existing(
        replace(source, licensed=(), stored_as=_stored_as(weights)),
        archive.name,
        archive.version,
        {key: value for key, value in archive.config.items() if key != "explain"},
        archive.config.get("explain") or {},
        staging.read_labels(labels) if labels.is_file() else None,
        adopt(str(model["handler"]), stage, workdir),
        wanted,
        notes,
    )


def _stored_as(weights: Path) -> str:
    """The file's name in the new archive: the old one, unless torch 2.15 would take by it what torch wrote for something else."""
    return weights.with_suffix(".pth").name if weights.suffix == ".safetensors" else weights.name


def _file(archive: Archive, key: str) -> Path | None:
    """The file that the manifest names; None where it names none."""
    name = archive.manifest["model"].get(key)
    if not name:
        return None
    path = archive.directory / str(name)
    if path.parent != archive.directory or not path.is_file():
        raise ToolError(f"the archive's manifest names the file {name} ({key}), and the archive does not hold it")
    return path


def _copy_files(archive: Archive, stage: Path) -> None:
    """Copies what a handler may need: all but the model, and what packaging writes; files that flags gave stay."""
    model = archive.manifest["model"]
    left = {*OWN_FOLDERS, f"{OURS}.py", staging.LABELS}
    left |= {str(model.get(key)) for key in ("modelFile", "serializedFile", "configFile")}
    for path in sorted(archive.directory.iterdir()):
        if path.name in left or (stage / path.name).exists():
            continue
        if path.name == staging.CONFIG:
            raise ToolError(
                f"the archive holds a file {path.name} that is not its configuration (configFile), and packaging writes one of "
                "that name itself; rename it"
            )
        if path.is_dir():
            shutil.copytree(path, stage / path.name, ignore=SKIPPED, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, stage / path.name)
    licences = archive.directory / "licenses"
    if licences.is_dir():  # of modules that it carries
        own = shutil.ignore_patterns("camserve-*")
        shutil.copytree(licences, stage / "licenses", ignore=own, copy_function=shutil.copyfile)
