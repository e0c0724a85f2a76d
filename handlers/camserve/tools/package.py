"""Makes an archive (.mar) of a model: weights, handler and configuration in one file that any TorchServe 0.12 serves."""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camserve.capture.backend import Backend, open_backend
from camserve.config import Config
from camserve.errors import ConfigError
from camserve.geometry import input_size
from camserve.labels import Labels
from camserve.tools import keys, sources, staging
from camserve.tools.bundle import bundle, copy_licences, needed_modules
from camserve.tools.console import Progress, ToolError, command_of, fail

STORE = Path("model_store")


def main(argv: Sequence[str]) -> int:
    """Packages what `argv` asks for; the exit status."""
    options, progress = parser().parse_args(argv), Progress()
    try:
        _report(package(options, progress), options, progress)
    except (ToolError, ConfigError) as error:
        return fail(error)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags: the model, its weights, the archive, TorchServe's settings, and the configuration's keys."""
    made = argparse.ArgumentParser(prog=command_of("package"), description=__doc__, allow_abbrev=False)
    model = made.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    model.add_argument("--torchvision", metavar="ARCH", help="a classifier of torchvision's, such as resnet50")
    model.add_argument("--model-file", metavar="FILE", type=Path, help="a file that defines one class without arguments")
    model.add_argument("--demo", action="store_true", help="EfficientNet-Lite0 with its ImageNet weights")
    weights = made.add_argument_group("its weights").add_mutually_exclusive_group()
    weights.add_argument("--weights", metavar="FILE", type=Path, help="a state dict, or a checkpoint that holds one")
    weights.add_argument("--random-weights", action="store_true", help="for trials; without either, the published ones")
    archive = made.add_argument_group("the archive")
    archive.add_argument("--name", help="the model's name (the architecture's or the file's)")
    archive.add_argument("--version", default="1.0", help="the model's version (%(default)s)")
    archive.add_argument("--labels", metavar="FILE", type=Path, help='index_to_name.json: {"0": "tench", ...}')
    archive.add_argument("--extra-files", metavar="FILES", action="append", default=[], help="comma-separated, repeatable")
    archive.add_argument("--export-path", metavar="DIR", type=Path, default=STORE, help="where it is written (%(default)s)")
    archive.add_argument("--force", action="store_true", help="replace an archive that exists")
    server = made.add_argument_group("how it is served")
    server.add_argument("--batch-size", metavar="N", type=_count, default=8, help="most requests in a batch (%(default)s)")
    delay = "how long a batch waits for more, in milliseconds (%(default)s)"
    server.add_argument("--max-batch-delay", metavar="MS", type=_count, default=10, help=delay)
    server.add_argument("--workers", metavar="N", type=_count, default=1, help="worker processes (%(default)s)")
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
    target = _target(options)
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        workdir, stage = Path(folder, "work"), Path(folder, "staging")
        workdir.mkdir()
        stage.mkdir()
        staging.copy_extra_files([each for text in options.extra_files for each in text.split(",")], stage)
        with progress.step("Load the model and its weights"):
            source = _source(options, workdir, stage, progress)
        explain = {**source.preprocessing, **given}
        with progress.step("Run the model once to find its layers"):
            config, backend = _settled(source, explain)
        _say_layers(backend, progress)
        _put_labels(options, source, backend.outputs, stage, progress)
        _put_modules(source, stage, progress)
        handler = staging.copy_package(stage)
        settings = staging.write_settings(workdir, _server_settings(options), {**explain, "layers": backend.layers})
        with progress.step("Build the archive with torch-model-archiver"):
            archive = staging.build(
                source, staging=stage, handler=handler, settings=settings, name=target.stem, version=options.version
            )
        with progress.step("Explain a picture from the archive in a fresh process"):
            answer = staging.explain_once(archive, config)
        staging.put(archive, target)
    for warning in answer["explanations"][0]["warnings"]:
        progress.note(f"Warning: the test picture's heatmap is {warning}; another --layer may show more")
    size = f"{target.stat().st_size / 1e6:.1f} MB"
    progress.note(f"Packaged {target} ({size}); it explains a picture in a fresh process")
    return target


def _check_flags(options: argparse.Namespace) -> None:
    if options.model_file and not options.weights:
        raise ToolError("--model-file needs --weights FILE: a state dict, torch.save(model.state_dict(), FILE)")
    if options.demo and (options.weights or options.random_weights):
        raise ToolError("--demo brings its own weights; for others, take --torchvision or --model-file")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.version):
        raise ToolError(f"--version: expected letters, digits, '.', '_' and '-', got {options.version!r}")


def _target(options: argparse.Namespace) -> Path:
    """The archive's path: a name that TorchServe takes, in a folder that exists, where nothing stands unless --force."""
    name = options.name or options.torchvision or (sources.DEMO if options.demo else options.model_file.stem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ToolError(f"--name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {name!r}")
    store: Path = options.export_path
    if store == STORE:
        store.mkdir(exist_ok=True)
    if not store.is_dir():
        raise ToolError(f"--export-path: there is no folder {store}; make it first, mkdir -p {store}")
    target = store / f"{name}.mar"
    if target.exists() and not options.force:
        raise ToolError(f"{target} exists; replace it with --force, or choose another --name")
    return target


def _source(options: argparse.Namespace, workdir: Path, stage: Path, progress: Progress) -> sources.Source:
    if options.demo:
        source = sources.demo()
    elif options.torchvision:
        bar = progress.console.is_terminal
        source = sources.from_torchvision(options.torchvision, workdir, options.weights, options.random_weights, bar)
    else:
        source = sources.from_file(options.model_file, options.weights, stage)
    for note in source.notes:
        progress.note(note)
    return source


def _settled(source: sources.Source, explain: Mapping[str, Any]) -> tuple[Config, Backend]:
    """The configuration as the worker will read it, and the model as it will run it."""
    config = Config.from_mapping(explain)
    quick = replace(config, channels_last=False)  # the worker itself measures which format is faster
    size = input_size(224, 224, config.resize, config.crop)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine a few small runs wait longer for threads than they gain by them
    try:
        return config, open_backend(source.model, quick, size, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


def _say_layers(backend: Backend, progress: Progress) -> None:
    if backend.why:
        progress.note(f"Layer {backend.layers[0]}: {backend.why}; --layer chooses another")
    else:
        progress.note(f"Layer {', '.join(backend.layers)}, as asked")


def _put_labels(options: argparse.Namespace, source: sources.Source, outputs: int, stage: Path, progress: Progress) -> None:
    mapping = None
    if options.labels:
        mapping = staging.read_labels(options.labels)
    elif source.labels is not None and len(source.labels) == outputs:
        mapping = {str(index): label for index, label in enumerate(source.labels)}
    labels = Labels(outputs, mapping)
    if mapping is None:
        progress.note(f"No labels: the {outputs} classes are named by their index; --labels gives them names")
    else:
        progress.note(f"Labels: {outputs} classes, from {labels[0]} to {labels[outputs - 1]}")
        staging.write_labels(stage, mapping)


def _put_modules(source: sources.Source, stage: Path, progress: Progress) -> None:
    licensed = list(source.licensed)
    if not source.generated:
        with progress.step("Find the modules that the model's file needs"):
            modules = needed_modules(source.model_file, stage)
        licensed += bundle(modules, stage)
        if modules:
            progress.note(f"Bundled, since TorchServe does not bring them: {', '.join(modules)}")
    copy_licences(licensed, stage)


def _server_settings(options: argparse.Namespace) -> dict[str, int]:
    return {
        "minWorkers": options.workers,
        "maxWorkers": options.workers,
        "batchSize": options.batch_size,
        "maxBatchDelay": options.max_batch_delay,
        "responseTimeout": 120,
        "startupTimeout": 300,
        "jobQueueSize": 1000,
    }


def _report(target: Path, options: argparse.Namespace, progress: Progress) -> None:
    store = "" if options.export_path == STORE else f" --model-store {shlex.quote(str(options.export_path))}"
    url = f"http://127.0.0.1:8080/explanations/{target.stem}"
    progress.note(f"  serve it:  {command_of('serve')} --models {target.stem}{store}")
    progress.note(f"  ask it:    curl -T cat.jpg {url}")
    progress.note(f"             curl -T cat.jpg {url} -H 'Accept: image/png' -o heat.png")
