"""Reads an archive that is served already, and says what of it goes into the one that explains."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.runtimes.packages import FILES
from camserve.tools.archive.archive import Archive
from camserve.tools.console import ToolError
from camserve.tools.packaging.adoption.their_handler import OURS, AdoptedHandler, adopt_handler
from camserve.tools.packaging.contents.files import copy_entry
from camserve.tools.packaging.contents.labels import read_labels
from camserve.tools.packaging.contents.names import CONFIG, LABELS
from camserve.tools.packaging.contents.requirements import check_requirements
from camserve.tools.packaging.models.files import load_model_file, load_program
from camserve.tools.packaging.models.source import ModelSource

OWN_FOLDERS = ("MAR-INF", "camserve", "licenses", "__pycache__")


@dataclass(frozen=True)
class OldArchive:
    """What an archive brings into a new one.

    Attributes:
        version: empty where its manifest has none.
        settings: TorchServe's, of its configuration.
        explain: the section `explain:` of its configuration.
        requirements: its file of requirements in the stage, or the one that takes its place.
        notes: what the user should hear.
    """

    source: ModelSource
    name: str
    version: str
    settings: Mapping[str, Any]
    explain: Mapping[str, Any]
    labels: Mapping[str, str] | None
    handler: AdoptedHandler
    requirements: Path | None = None
    notes: tuple[str, ...] = ()


def read_old_archive(archive: Archive, workdir: Path, stage: Path, requirements: Path | None = None) -> OldArchive:
    """Reads an unpacked archive; its extra files are copied into `stage`, a handler that wraps theirs into `workdir`.

    `requirements`: a file in `stage`, checked already, which takes the place of the archive's own.

    Raises:
        ToolError: its handler is no image classifier, or takes the batch itself; its requirements are not installed; a file
            has a name that packaging needs; or its model cannot be loaded.
    """
    model = archive.manifest["model"]
    model_file, weights, own = (_find_file(archive, key) for key in ("modelFile", "serializedFile", "requirementsFile"))
    if weights is None:
        raise ToolError("the archive holds no weights (serializedFile), so there is nothing to explain")
    if not model.get("handler"):
        raise ToolError("the archive's manifest names no handler")
    _copy_files(archive, stage)
    notes: tuple[str, ...] = ()
    if requirements is None and own is not None:
        requirements = stage / own.name
        notes = check_requirements(requirements)
    if model_file:
        source = load_model_file(
            shutil.copyfile(model_file, workdir / model_file.name), weights, stage, workdir=workdir, describe=False
        )
    else:
        source = load_program(weights, workdir)
    labels = archive.directory / LABELS
    graph = source.model if isinstance(source.model, GraphModule) else None
    handler = adopt_handler(str(model["handler"]), stage, workdir, graph)
    return OldArchive(
        replace(source, licensed=(), stored_as=choose_name(weights)),
        archive.name,
        archive.version,
        {key: value for key, value in archive.config.items() if key != "explain"},
        archive.config.get("explain") or {},
        read_labels(labels) if labels.is_file() else None,
        handler,
        requirements,
        (*notes, *handler.notes),
    )


def choose_name(weights: Path) -> str:
    """Chooses the weights' name in the new archive: the old one, unless torch 2.15 would misread the file by its ending."""
    return weights.with_suffix(".pth").name if weights.suffix == ".safetensors" else weights.name


def _find_file(archive: Archive, key: str) -> Path | None:
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
    left = {*OWN_FOLDERS, f"{OURS}.py", LABELS, *FILES}
    left |= {str(model.get(key)) for key in ("modelFile", "serializedFile", "configFile")}
    for path in sorted(archive.directory.iterdir()):
        if path.name in left or (stage / path.name).exists():
            continue
        if path.name == CONFIG:
            raise ToolError(
                f"the archive holds a file {path.name} that is not its configuration (configFile), and packaging writes one of "
                "that name itself; rename it"
            )
        copy_entry(path, stage)
    licences = archive.directory / "licenses"
    if licences.is_dir():  # of modules that it carries
        own = shutil.ignore_patterns("camserve-*")
        shutil.copytree(licences, stage / "licenses", ignore=own, copy_function=shutil.copyfile)
