"""Makes an archive (.mar) of a model: weights, handler and configuration in one file that any TorchServe 0.12 serves."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camserve.capture.backend import Backend, open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.core.geometry import input_size
from camserve.core.labels import Labels
from camserve.tools.archive.archive import Archive, open_archive
from camserve.tools.console import Progress, ToolError, command_of, fail, report_unforeseen
from camserve.tools.packaging import advice, existing, keys, requirements, sources, staging
from camserve.tools.packaging.bundle import bundle, copy_licences, needed_modules
from camserve.tools.packaging.existing import Existing
from camserve.tools.packaging.their_handler import Adopted

STORE = Path("model_store")
DEFAULTS = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 8,
    "maxBatchDelay": 1,
    "responseTimeout": 120,
    "startupTimeout": 300,
}
"""TorchServe's settings where nothing else gives them. How many requests may wait (`jobQueueSize`) depends on the server's
memory, so the server's `job_queue_size` says it."""


def main(argv: Sequence[str]) -> int:
    """Packages what `argv` asks for; the exit status."""
    options, progress = parser().parse_args(argv), Progress()
    try:
        _report(package(options, progress), options, progress)
    except (ToolError, ConfigError) as error:
        return fail(error)
    except Exception as error:  # noqa: BLE001 the model, its file and a handler's may raise anything
        return report_unforeseen(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags: the model, its weights, the archive, TorchServe's settings, and the configuration's keys."""
    made = argparse.ArgumentParser(prog=command_of("package"), description=__doc__, allow_abbrev=False)
    model = made.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    model.add_argument("--torchvision", metavar="ARCH", help="a classifier of torchvision's, such as resnet50")
    model.add_argument("--model-file", metavar="FILE", type=Path, help="a file that defines one class without arguments")
    model.add_argument("--torchscript", metavar="FILE", type=Path, help="a TorchScript file, scripted or traced")
    model.add_argument("--exported", metavar="FILE", type=Path, help="a program that torch.export.save wrote")
    model.add_argument("--from-archive", metavar="OLD", type=Path, help="an archive that is served already (.mar, .tar.gz)")
    model.add_argument("--demo", action="store_true", help="EfficientNet-Lite0 with its ImageNet weights")
    weights = made.add_argument_group("its weights").add_mutually_exclusive_group()
    weights.add_argument("--weights", metavar="FILE", type=Path, help="a state dict, or a checkpoint that holds one")
    weights.add_argument("--random-weights", action="store_true", help="for trials; without either, the published ones")
    archive = made.add_argument_group("the archive")
    archive.add_argument("--name", help="the model's name (the architecture's or the file's)")
    archive.add_argument("--version", help="the model's version (1.0, or the old archive's)")
    archive.add_argument("--labels", metavar="FILE", type=Path, help='index_to_name.json: {"0": "tench", ...}')
    archive.add_argument("--extra-files", metavar="FILES", action="append", default=[], help="comma-separated, repeatable")
    wanted = "what TorchServe is to install for the archive (pip's format); what it names is not bundled"
    archive.add_argument("--requirements", metavar="FILE", type=Path, help=wanted)
    archive.add_argument("--export-path", metavar="DIR", type=Path, default=STORE, help="where it is written (%(default)s)")
    settings = "a model-config.yaml: TorchServe's settings (pt2, deviceType, ...) and a section `explain:`; flags beat it"
    archive.add_argument("--config", metavar="FILE", type=Path, help=settings)
    archive.add_argument("--force", action="store_true", help="replace an archive that exists")
    server = made.add_argument_group("how it is served")
    server.add_argument("--batch-size", metavar="N", type=_count, help="most requests in a batch (8)")
    delay = "how long a batch waits for more, in milliseconds (1: under load batches fill by themselves)"
    server.add_argument("--max-batch-delay", metavar="MS", type=_count, help=delay)
    server.add_argument("--workers", metavar="N", type=_count, help="worker processes (1)")
    queue = "most waiting requests, which lie in Java's memory; beyond, the answer is 503 (the server's job_queue_size)"
    server.add_argument("--job-queue-size", metavar="N", type=_count, help=queue)
    keys.add_flags(made.add_argument_group("how it explains: the section `explain:` of model-config.yaml"))
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100000, got {text!r}")
    return int(text)


def package(options: argparse.Namespace, progress: Progress) -> Path:
    """Makes the archive and returns its path; on a failure nothing is left behind, and an earlier archive stays.

    Raises:
        ToolError: what was asked for cannot be done.
        ConfigError: a key of the configuration, a layer or the labels do not fit.
    """
    given = keys.given_keys(options)
    _check_flags(options)
    server, section = staging.read_settings(options.config) if options.config else ({}, {})
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder, ExitStack() as stack:
        workdir, stage = Path(folder, "work"), Path(folder, "staging")
        workdir.mkdir()
        stage.mkdir()
        opened = stack.enter_context(open_archive(options.from_archive)) if options.from_archive else None
        target = _target(options, opened)
        _check_files(options)
        staging.copy_extra_files([each for text in options.extra_files for each in text.split(",")], stage)
        wanted = requirements.take(options.requirements, stage) if options.requirements else None
        notes = requirements.check(wanted) if wanted else ()
        with progress.step("Load the model and its weights"):
            old = existing.read(opened, workdir, stage, wanted) if opened else None
            source = old.source if old else _source(options, workdir, stage, progress)
        for note in [*source.notes, *notes, *(old.notes if old else ())]:
            progress.note(note)
        settings = _settings(old.settings if old else {}, server, options)
        with progress.step("Run the model once to find its layers"):
            explain, config, backend, found = _settled(source, old, {**section, **given})
        for note in found:
            progress.note(note)
        _put_labels(options, old.labels if old else _names(source, backend.outputs), backend.outputs, stage, progress)
        wanted = old.requirements if old else wanted
        _put_modules(source, wanted, stage, progress)
        handler = _put_handler(old, stage, progress)
        written = staging.write_settings(workdir, settings, {**explain, "layers": backend.layers})
        with progress.step("Build the archive with torch-model-archiver"):
            parts = staging.Parts(stage, handler, written, wanted)
            version = options.version or (old.version if old else "") or "1.0"
            archive = staging.build(source, parts, name=target.stem, version=version)
        with progress.step("Explain a picture from the archive in a fresh process"):
            answer = staging.explain_once(archive, config)
        staging.put(archive, target)
    for warning in answer["explanations"][0]["warnings"]:
        progress.note(f"Warning: the test picture's heatmap is {warning}; another --layer may show more")
    progress.note(f"Packaged {target} ({target.stat().st_size / 1e6:.1f} MB); it explains a picture in a fresh process")
    return target


def _check_flags(options: argparse.Namespace) -> None:
    if options.model_file and not options.weights:
        raise ToolError("--model-file needs --weights FILE: a state dict, torch.save(model.state_dict(), FILE)")
    if not (options.torchvision or options.model_file) and (options.weights or options.random_weights):
        raise ToolError("--demo and whole programs bring their own weights; for others, take --torchvision or --model-file")
    if options.version is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.version):
        raise ToolError(f"--version: expected letters, digits, '.', '_' and '-', got {options.version!r}")


def _check_files(options: argparse.Namespace) -> None:
    """Refuses files that are not there before the work begins; what is in them is looked at when they are read."""
    for name in ("model_file", "weights", "torchscript", "exported", "labels"):
        path = getattr(options, name)
        flag = f"--{name.replace('_', '-')}"
        if path and not path.exists():
            raise ToolError(f"{flag}: there is no file {path}")
        if path and path.is_dir():
            raise ToolError(f"{flag}: {path} is a folder, not a file")


def _target(options: argparse.Namespace, old: Archive | None) -> Path:
    """The archive's path: a name that TorchServe takes, in a folder that exists, where nothing stands unless --force."""
    file = options.model_file or options.torchscript or options.exported
    own = old.name if old else sources.DEMO if options.demo else options.torchvision or file.stem
    name = options.name or own
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ToolError(f"--name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {name!r}")
    store: Path = options.export_path
    if store == STORE:
        store.mkdir(exist_ok=True)
    if not store.is_dir():
        raise ToolError(f"--export-path: there is no folder {store}; make it first, mkdir -p {shlex.quote(str(store))}")
    target = store / f"{name}.mar"
    if target.exists() and not options.force:
        raise ToolError(f"{target} exists; replace it with --force, or choose another --name")
    return target


def _source(options: argparse.Namespace, workdir: Path, stage: Path, progress: Progress) -> sources.Source:
    if options.demo:
        return sources.demo()
    if options.torchvision:
        bar = progress.console.is_terminal
        return sources.from_torchvision(options.torchvision, workdir, options.weights, options.random_weights, bar)
    if options.model_file:
        return sources.from_file(options.model_file, options.weights, stage)
    return sources.from_program(options.torchscript or options.exported)


def _settled(
    source: sources.Source, old: Existing | None, asked: Mapping[str, Any]
) -> tuple[dict[str, Any], Config, Backend, list[str]]:
    """The section `explain:`, as it stands and as the worker will read it; the model as it will run it; what to say of them."""
    handler = old.handler if old else Adopted()
    origins = {"the model's own": source.preprocessing, "the archive's": old.explain if old else {}, "as asked": asked}
    explain = {key: value for each in origins.values() for key, value in each.items()}
    config = Config.from_mapping(explain)
    quick = replace(config, channels_last=False)  # the worker itself measures which format is faster
    size = handler.size or input_size(256, 256, config.resize, config.crop)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine a few small runs wait longer for threads than they gain by them
    try:
        with advice.about_size(source.model, size, own=handler.size is not None):
            backend = open_backend(source.model, quick, size, torch.device("cpu"))
        odd = advice.of_outputs(source.model, backend, size)
    finally:
        torch.set_num_threads(threads)
    return explain, config, backend, [advice.of_layers(backend), *advice.of_pictures(config, origins, handler), *odd]


def _names(source: sources.Source, outputs: int) -> dict[str, str] | None:
    """The labels that the source knows, where they match."""
    if source.labels is None or len(source.labels) != outputs:
        return None
    return {str(index): label for index, label in enumerate(source.labels)}


def _put_labels(
    options: argparse.Namespace, known: Mapping[str, str] | None, outputs: int, stage: Path, progress: Progress
) -> None:
    mapping = staging.read_labels(options.labels) if options.labels else known
    labels = Labels(outputs, mapping)
    if mapping is None:
        progress.note(f"No labels: the {outputs} classes are named by their index; --labels gives them names")
    else:
        progress.note(f"Labels: {outputs} classes, from {labels[0]} to {labels[outputs - 1]}")
        staging.write_labels(stage, mapping)


def _put_handler(old: Existing | None, stage: Path, progress: Progress) -> Path:
    """The handler's file, beside the package and, where it is the old archive's, camserve's own handler in `stage`."""
    ours = staging.copy_package(stage)
    if old is None or old.handler.file is None:
        return ours
    shutil.copyfile(ours, stage / ours.name)
    progress.note(f"Handler: {old.handler.title}, over camserve's")
    return old.handler.file


def _put_modules(source: sources.Source, wanted: Path | None, stage: Path, progress: Progress) -> None:
    licensed = list(source.licensed)
    if source.model_file and not source.generated:
        with progress.step("Find the modules that the model's file needs"):
            modules = needed_modules(source.model_file, stage, wanted)
        licensed += bundle(modules, stage)
        if modules:
            progress.note(f"Bundled, since TorchServe does not bring them: {', '.join(modules)}")
    copy_licences(licensed, stage)


def _settings(old: Mapping[str, Any], server: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """TorchServe's settings: flags beat those of --config (`server`), these the old archive's, and these the defaults.

    Raises:
        ToolError: --config gives one that TorchServe would leave out, or more workers at least than at most.
    """
    for name in (*DEFAULTS, "jobQueueSize"):
        value = server.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ToolError(f"--config: {name}: expected a whole number, 0 or more, got {value!r}")
    asked = {**old, **server, **_flagged(options)}
    found = {**DEFAULTS, **asked}
    low, high = found["minWorkers"], found["maxWorkers"]
    if isinstance(low, int) and isinstance(high, int) and low > high:
        if "maxWorkers" in asked:
            raise ToolError(f"minWorkers is {low} and maxWorkers {high}, which TorchServe does not take; --workers sets both")
        found["maxWorkers"] = low
    return found


def _flagged(options: argparse.Namespace) -> dict[str, int]:
    """TorchServe's settings that flags give."""
    given = {
        "minWorkers": options.workers,
        "maxWorkers": options.workers,
        "batchSize": options.batch_size,
        "maxBatchDelay": options.max_batch_delay,
        "jobQueueSize": options.job_queue_size,
    }
    return {name: value for name, value in given.items() if value is not None}


def _report(target: Path, options: argparse.Namespace, progress: Progress) -> None:
    store = "" if options.export_path == STORE else f" --model-store {shlex.quote(str(options.export_path))}"
    url = f"http://127.0.0.1:8080/explanations/{target.stem}"
    progress.note(f"  serve it:  {command_of('serve')} --models {target.stem}{store}")
    progress.note(f"  ask it:    curl -T cat.jpg {url}")
    progress.note(f"             curl -T cat.jpg {url} -H 'Accept: image/png' -o heat.png")
