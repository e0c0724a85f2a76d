"""Makes an archive (.mar) of a model: weights, handler and configuration in one file that any TorchServe 0.12 serves."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.core.errors import ConfigError
from camserve.core.labels import Labels
from camserve.tools.archive.archive import Archive, open_archive
from camserve.tools.console import Progress, ToolError, command_of, fail, report_unforeseen
from camserve.tools.packaging.adoption.old_archive import OldArchive, read_old_archive
from camserve.tools.packaging.archiver import Parts, build_archive
from camserve.tools.packaging.contents.files import copy_extra_files, copy_package
from camserve.tools.packaging.contents.labels import read_labels, write_labels
from camserve.tools.packaging.contents.modules import copy_licences, copy_modules, find_needed_modules
from camserve.tools.packaging.contents.requirements import check_requirements, copy_requirements
from camserve.tools.packaging.contents.settings import ModelConfig, merge_settings, read_settings, write_settings
from camserve.tools.packaging.flags.keys import add_key_flags, read_keys
from camserve.tools.packaging.flags.model import ModelFlags, add_labels_flag, add_model_flags, add_weights_flag, read_model_flags
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.probe import Probed, probe_model
from camserve.tools.packaging.trial import try_archive

STORE = Path("model_store")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        model: which model.
        keys: keys of the configuration.
        settings: TorchServe's settings, by their names in model-config.yaml.
        name: the model's name; None: its own.
        version: None: the old archive's, or 1.0.
        extra_files: names of files and folders, and wildcards.
        requirements: a file for pip.
        config: a model-config.yaml.
        export_path: the folder that the archive is written to.
        force: replace an archive that exists.
    """

    model: ModelFlags
    keys: Mapping[str, Any]
    settings: Mapping[str, int]
    name: str | None
    version: str | None
    extra_files: Sequence[str]
    requirements: Path | None
    config: Path | None
    export_path: Path
    force: bool


@dataclass(frozen=True)
class Workspace:
    """Folders of one run: files that the archive will hold, others on the way, and beside its place the archive itself."""

    stage: Path
    workdir: Path
    built: Path


@dataclass(frozen=True)
class Loaded:
    """The model, the archive that it comes from, if any, and the file of requirements in the stage."""

    source: ModelSource
    old: OldArchive | None
    requirements: Path | None


def main(argv: Sequence[str]) -> int:
    """Packages what `argv` asks for; the exit status."""
    progress = Progress()
    try:
        options = parse(argv)
        _report(package(options, progress), options, progress)
    except (ToolError, ConfigError) as error:
        return fail(error)
    except Exception as error:  # noqa: BLE001 the model, its file and a handler's may raise anything
        return report_unforeseen(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: the model, its weights and labels first, TorchServe's settings last."""
    parser = argparse.ArgumentParser(prog=command_of("package"), description=__doc__, allow_abbrev=False)
    parser.usage = "%(prog)s MODEL [--weights FILE] [--labels FILE] [--name NAME] [...]"
    model = parser.add_argument_group("the model, one of").add_mutually_exclusive_group(required=True)
    add_model_flags(model)
    old = "an archive that is served already (.mar, .tar.gz)"
    model.add_argument("--from-archive", dest="archive", metavar="OLD", type=Path, help=old)
    weights = parser.add_argument_group("its weights").add_mutually_exclusive_group()
    add_weights_flag(weights)
    weights.add_argument("--random-weights", action="store_true", help="for trials; without either, the published ones")
    add_labels_flag(parser.add_argument_group("its classes"))
    _add_archive_flags(parser.add_argument_group("the archive"))
    add_key_flags(parser)
    _add_server_flags(parser.add_argument_group("how TorchServe runs it"))
    return parser


def _add_archive_flags(archive: Any) -> None:
    archive.add_argument("--name", help="the model's name (the architecture's or the file's)")
    archive.add_argument("--version", help="the model's version (1.0, or the old archive's)")
    archive.add_argument("--export-path", metavar="DIR", type=Path, default=STORE, help="where it is written (%(default)s)")
    archive.add_argument("--force", action="store_true", help="replace an archive that exists")
    archive.add_argument("--extra-files", metavar="FILES", action="append", default=[], help="comma-separated, repeatable")
    wanted = "what TorchServe is to install for the archive (pip's format); what it names is not bundled"
    archive.add_argument("--requirements", metavar="FILE", type=Path, help=wanted)
    settings = "a model-config.yaml: TorchServe's settings (pt2, deviceType, ...) and a section `explain:`; flags beat it"
    archive.add_argument("--config", metavar="FILE", type=Path, help=settings)


def _add_server_flags(server: Any) -> None:
    server.add_argument("--batch-size", metavar="N", type=_count, help="most requests in a batch (8)")
    delay = "how long a batch waits for more, in milliseconds (1: under load batches fill by themselves)"
    server.add_argument("--max-batch-delay", metavar="MS", type=_count, help=delay)
    server.add_argument("--workers", metavar="N", type=_count, help="worker processes (1)")
    queue = "most waiting requests, which lie in Java's memory; beyond, the answer is 503 (the server's job_queue_size)"
    server.add_argument("--job-queue-size", metavar="N", type=_count, help=queue)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100000, got {text!r}")
    return int(text)


def parse(argv: Sequence[str]) -> Options:
    """Reads the command line, and refuses flags that do not fit together.

    Raises:
        ToolError: weights that do not go with the model, or a version that TorchServe does not take.
        ConfigError: a key of the configuration does not fit.
    """
    given = parser().parse_args(argv)
    settings = {
        "minWorkers": given.workers,
        "maxWorkers": given.workers,
        "batchSize": given.batch_size,
        "maxBatchDelay": given.max_batch_delay,
        "jobQueueSize": given.job_queue_size,
    }
    options = Options(
        model=read_model_flags(given, random_weights=given.random_weights),
        keys=read_keys(given),
        settings={name: value for name, value in settings.items() if value is not None},
        name=given.name,
        version=given.version,
        extra_files=[name for text in given.extra_files for name in text.split(",")],
        requirements=given.requirements,
        config=given.config,
        export_path=given.export_path,
        force=given.force,
    )
    options.model.check()
    if options.version is not None and not re.fullmatch(NAME, options.version):
        raise ToolError(f"--version: expected letters, digits, '.', '_' and '-', got {options.version!r}")
    return options


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
        space = _open_workspace(target, stack)
        loaded = _load(options, archive, space, progress)
        settings = merge_settings(loaded.old.settings if loaded.old else {}, config.server, options.settings)
        with progress.step("Run the model once to find its layers"):
            probed = probe_model(loaded.source, loaded.old, {**config.explain, **options.keys})
        _say_all(probed.notes, progress)
        _put_labels(options.model.labels, loaded, probed.outputs, space.stage, progress)
        _put_modules(loaded, space.stage, progress)
        handler = _put_handler(loaded.old, space.stage, progress)
        written = write_settings(space.workdir, settings, {**probed.explain, "layers": probed.layers})
        with progress.step("Build the archive with torch-model-archiver"):
            parts = Parts(space.stage, handler, written, loaded.requirements)
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
            loaded = Loaded(old.source, old, old.requirements)
            notes = (*notes, *old.notes)
        else:
            source = options.model.load(space.workdir, space.stage, progress.console.is_terminal)
            loaded = Loaded(source, None, requirements)
    _say_all([*loaded.source.notes, *notes], progress)
    return loaded


def _say_all(notes: Sequence[str], progress: Progress) -> None:
    for note in notes:
        progress.note(note)


def _put_labels(file: Path | None, loaded: Loaded, outputs: int, stage: Path, progress: Progress) -> None:
    """Writes the labels of a file, of the old archive, or of the model, where they are as many as its outputs."""
    own = loaded.source.label_mapping
    known = loaded.old.labels if loaded.old else own if own is None or len(own) == outputs else None
    mapping = read_labels(file) if file else known
    labels = Labels(outputs, mapping)
    if mapping is None:
        progress.note(f"No labels: the {outputs} classes are named by their index; --labels gives them names")
    else:
        progress.note(f"Labels: {outputs} classes, from {labels[0]} to {labels[outputs - 1]}")
        write_labels(stage, mapping)


def _put_modules(loaded: Loaded, stage: Path, progress: Progress) -> None:
    """Copies the modules that the model's file needs and a server does not bring, and all licences."""
    source, licensed = loaded.source, list(loaded.source.licensed)
    if source.model_file and not source.generated:
        with progress.step("Find the modules that the model's file needs"):
            modules = find_needed_modules(source.model_file, stage, loaded.requirements)
        licensed += copy_modules(modules, stage)
        if modules:
            progress.note(f"Bundled, since TorchServe does not bring them: {', '.join(modules)}")
    copy_licences(licensed, stage)


def _put_handler(old: OldArchive | None, stage: Path, progress: Progress) -> Path:
    """The handler's file, beside the package and, where it is the old archive's, camserve's own handler in `stage`."""
    ours = copy_package(stage)
    if old is None or old.handler.file is None:
        return ours
    shutil.copyfile(ours, stage / ours.name)
    progress.note(f"Handler: {old.handler.title}, over camserve's")
    return old.handler.file


def _try(archive: Path, probed: Probed, progress: Progress) -> None:
    """Explains a picture with the archive in a fresh process, and passes on what is odd about its heatmap."""
    with progress.step("Explain a picture from the archive in a fresh process"):
        answer = try_archive(archive, probed.config)
    for warning in answer["explanations"][0]["warnings"]:
        progress.note(f"Warning: the test picture's heatmap is {warning}; another --layer may show more")


def _report(target: Path, options: Options, progress: Progress) -> None:
    store = "" if options.export_path == STORE else f" --model-store {shlex.quote(str(options.export_path))}"
    url = f"http://127.0.0.1:8080/explanations/{target.stem}"
    progress.note(f"  serve it:  {command_of('serve')} --models {target.stem}{store}")
    progress.note(f"  ask it:    curl -T cat.jpg {url}")
    progress.note(f"             curl -T cat.jpg {url} -H 'Accept: image/png' -o heat.png")
