"""Packages a model: loads it, finds its layers, builds the archive, and tries it."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from camserve.capture.survey.reader import OutputReader
from camserve.core.labels import Labels, name_both
from camserve.tools.archive.archive import Archive, open_archive
from camserve.tools.archive.trust import review
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging.adoption.old_archive import OldArchive, read_old_archive
from camserve.tools.packaging.adoption.own_handler import check_handler_file, take_handler
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler
from camserve.tools.packaging.archiver import Parts, build_archive
from camserve.tools.packaging.contents.files import copy_extra_files, copy_package
from camserve.tools.packaging.contents.labels import read_labels, write_labels
from camserve.tools.packaging.contents.measured import Measurable, choose_by_measuring
from camserve.tools.packaging.contents.modules import UncarriedError, copy_licences, copy_modules, find_needed_modules
from camserve.tools.packaging.contents.requirements import add_requirements, check_requirements, copy_requirements
from camserve.tools.packaging.contents.settings import ModelConfig, merge_settings, read_settings, write_settings
from camserve.tools.packaging.flags.package import NAME, STORE, Options
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.probe import Probed, probe_model
from camserve.tools.packaging.trial import try_archive


@dataclass(frozen=True)
class Workspace:
    """Folders of one run: files that the archive will hold, others on the way, and beside its place the archive itself."""

    stage: Path
    workdir: Path
    built: Path


@dataclass(frozen=True)
class Loaded:
    """The model, the archive that it comes from, if any, the file of requirements in the stage, and the handler."""

    source: ModelSource
    old: OldArchive | None
    requirements: Path | None
    handler: AdoptedHandler


def package(options: Options, progress: Progress) -> Path:
    """Makes the archive and returns its path; on a failure nothing is left behind, and an earlier archive stays.

    Raises:
        ToolError: what was asked for cannot be done.
        ConfigError: a key of the configuration, a layer or the labels do not fit.
    """
    config = read_settings(options.config) if options.config else ModelConfig()
    with ExitStack() as stack:
        archive = stack.enter_context(open_archive(options.model.archive)) if options.model.archive else None
        target = _choose_target(options, archive)
        options.model.check_files()
        if options.handler:
            check_handler_file(options.handler)
        if archive and options.model.archive:
            review(options.model.archive, archive, options.trust, progress.note)
        space = _open_workspace(target, stack)
        loaded = _load(options, archive, space, progress)
        settings = merge_settings(loaded.old.settings if loaded.old else {}, config.server, options.settings)
        labels = _read_labels(options, loaded)
        with progress.step("Run the model to find its layers") as tell:
            classes = None if labels is None else len(labels)
            asked = {**config.explain, **options.keys}
            if options.choose_by:
                given = Measurable(loaded.source, loaded.old, loaded.handler, classes, target.stem)
                asked |= choose_by_measuring(options.choose_by, given, asked, space, say=progress.note, tell=tell)
            probed = probe_model(loaded.source, loaded.old, asked, classes, tell, handler=loaded.handler, stage=space.stage)
        if options.model.random_weights:
            progress.note("Weights: random, for trials: its answers mean nothing; --weights FILE brings trained ones")
        _say_all(probed.notes, progress)
        labels = _fit_labels(labels, options, loaded, probed.reader, probed.outputs)
        _put_labels(labels, probed.outputs, space.stage, progress)
        requirements = _put_modules(loaded, probed, space.stage, progress)
        handler = _put_handler(loaded.handler, space.stage, progress)
        written = write_settings(space.workdir, settings, {**probed.explain, "layers": probed.layers})
        with progress.step("Build the archive with torch-model-archiver"):
            parts = Parts(space.stage, handler, written, requirements)
            version = options.version or (loaded.old.version if loaded.old else "") or "1.0"
            built = build_archive(loaded.source, parts, space.built, name=target.stem, version=version)
        _try(built, probed, progress)
        built.replace(target)
    progress.note(f"Packaged {target} ({target.stat().st_size / 1e6:.1f} MB); it explains a picture in a fresh process")
    return target


def _choose_target(options: Options, old: Archive | None) -> Path:
    """The archive's path: a name that TorchServe takes, in a folder that exists, where nothing stands unless --force."""
    name = options.name or (old.name if old else options.model.default_name)
    if not re.fullmatch(NAME, name):
        raise ToolError(f"--name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {name!r}")
    store = options.export_path
    if store == STORE:
        store.mkdir(exist_ok=True)
    if not store.is_dir():
        raise ToolError(f"--export-path: there is no folder {store}; make it first, mkdir -p {shlex.quote(str(store))}")
    target = store / f"{name}.mar"
    if target.exists() and not options.force:
        raise ToolError(f"{target} exists; replace it with --force, or choose another --name")
    return target


def _open_workspace(target: Path, stack: ExitStack) -> Workspace:
    """Makes folders that are removed when `stack` closes.

    The archive is built beside its place, so that a rename puts it there in one step. No server takes the hidden folder, or
    what is in it, for a model.
    """
    try:
        beside = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent.resolve())
    except OSError as error:
        raise ToolError(f"--export-path: nothing can be written in {target.parent}: {error.strerror}") from error
    built = Path(stack.enter_context(beside))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camserve-")))
    space = Workspace(folder / "staging", folder / "work", built)
    space.stage.mkdir()
    space.workdir.mkdir()
    return space


def _load(options: Options, archive: Archive | None, space: Workspace, progress: Progress) -> Loaded:
    """Loads the model, after extra files and requirements, which its file may need, lie in the stage."""
    copy_extra_files(options.extra_files, space.stage)
    requirements = copy_requirements(options.requirements, space.stage) if options.requirements else None
    notes = check_requirements(requirements) if requirements else ()
    with progress.step("Load the model and its weights"):
        if archive:
            old = read_old_archive(archive, space.workdir, space.stage, requirements)
            loaded = Loaded(old.source, old, old.requirements, old.handler)
            notes = (*notes, *old.notes)
        else:
            source, handler = options.model.load(space.workdir, space.stage, progress.console.is_terminal), AdoptedHandler()
            if options.handler:
                source, handler = take_handler(options.handler, source, space.stage, space.workdir)
            loaded = Loaded(source, None, requirements, handler)
            notes = (*notes, *handler.notes)
    _say_all([*loaded.source.notes, *notes], progress)
    return loaded


def _say_all(notes: Sequence[str], progress: Progress) -> None:
    for note in notes:
        progress.note(note)


def _fit_labels(
    labels: Mapping[str, str] | None, options: Options, loaded: Loaded, reader: OutputReader, outputs: int
) -> Mapping[str, str] | None:
    """Fits the labels to the model's classes; its own count only where they are as many."""
    if options.positive is not None and not reader.binary:
        raise ToolError(f"--positive names the class of a model of one logit; this one has {outputs} outputs: give --labels")
    if labels is not None and reader.binary:
        labels = name_both(labels)
    own = not loaded.old and not options.model.labels and options.positive is None
    return None if labels is not None and own and len(labels) != outputs else labels


def _put_labels(mapping: Mapping[str, str] | None, outputs: int, stage: Path, progress: Progress) -> None:
    """Writes the labels, if there are any."""
    named = Labels(outputs, mapping)
    if mapping is None:
        progress.note(f"No labels: the {outputs} classes are named by their index; --labels gives them names")
    else:
        progress.note(f"Labels: {outputs} classes, from {named[0]} to {named[outputs - 1]}")
        write_labels(stage, mapping)


def _read_labels(options: Options, loaded: Loaded) -> Mapping[str, str] | None:
    """Reads the labels of a file, of the old archive, or of the model; `--positive` names the class of a single logit."""
    if options.positive is not None:
        return {"0": options.positive}
    if options.model.labels:
        return read_labels(options.model.labels)
    return loaded.old.labels if loaded.old else loaded.source.label_mapping


def _put_modules(loaded: Loaded, probed: Probed, stage: Path, progress: Progress) -> Path | None:
    """Copies the modules that the model's file needs and a server does not bring, and all licences.

    Returns:
        The file of requirements in the stage. What the model's library needs and an archive cannot carry is written there.
    """
    source, licensed, requirements = loaded.source, list(loaded.source.licensed), loaded.requirements
    if source.model_file and not source.generated:
        try:
            with progress.step("Find the modules that the model's file needs"):
                modules = find_needed_modules(source.model_file, stage, requirements, beside=source.beside, shape=probed.shape)
        except UncarriedError as error:
            if not source.requires:
                raise
            requirements, modules = add_requirements(source.requires, requirements, stage), {}
            progress.note(
                f"{error.why}: {requirements.name} names it, and TorchServe installs that where its configuration has "
                "install_py_dep_per_model=true"
            )
        licensed += copy_modules(modules, stage)
        if modules:
            progress.note(f"Bundled, since TorchServe does not bring them: {', '.join(modules)}")
    elif source.requires:
        requirements = add_requirements(source.requires, requirements, stage)
        progress.note(
            f"{requirements.name} names {' and '.join(source.requires)}, and TorchServe installs them where its configuration "
            "has install_py_dep_per_model=true; any other worker needs pip install 'camserve[onnx]'"
        )
    copy_licences(licensed, stage)
    return requirements


def _put_handler(handler: AdoptedHandler, stage: Path, progress: Progress) -> Path:
    """The handler's file, beside the package and, where it is not camserve's, camserve's own handler in `stage`."""
    ours = copy_package(stage)
    if handler.file is None:
        return ours
    shutil.copyfile(ours, stage / ours.name)
    progress.note(f"Handler: {handler.title}, over camserve's")
    return handler.file


def _try(archive: Path, probed: Probed, progress: Progress) -> None:
    """Explains a picture with the archive in a fresh process, and passes on what is odd about its heatmap."""
    with progress.step("Explain a picture from the archive in a fresh process"):
        answer = try_archive(archive, probed.config)
    for warning in answer["explanations"][0]["warnings"]:
        progress.note(f"Warning: the test picture's heatmap is {warning}; another --layer may show more")
