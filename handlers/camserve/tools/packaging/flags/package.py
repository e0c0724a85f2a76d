"""The command line of `camserve package`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.tools.console import TRUST, ToolError, command_of
from camserve.tools.packaging.flags.keys import add_key_flags, read_keys
from camserve.tools.packaging.flags.model import (
    ModelFlags,
    add_class_flags,
    add_labels_flag,
    add_model_flags,
    add_weights_flag,
    add_weights_key_flag,
    read_model_flags,
)

DESCRIPTION = """
Makes an archive (.mar) of a model: weights, handler and configuration in one file that any TorchServe 0.12 serves.
"""
STORE = Path("model_store")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        model: which model.
        trust: the code of an archive that is served already may run.
        positive: the name of the class that a single logit speaks for.
        keys: keys of the configuration.
        settings: TorchServe's settings, by their names in model-config.yaml.
        name: the model's name; None: its own.
        version: None: the old archive's, or 1.0.
        extra_files: names of files and folders, and wildcards.
        handler: a file with a handler of the user's; None: camserve's own, or the old archive's.
        requirements: a file for pip.
        config: a model-config.yaml.
        choose_by: pictures and folders by which layer and method are measured and chosen.
        export_path: the folder that the archive is written to.
        force: replace an archive that exists.
    """

    model: ModelFlags
    trust: bool
    positive: str | None
    keys: Mapping[str, Any]
    settings: Mapping[str, int]
    name: str | None
    version: str | None
    extra_files: Sequence[str]
    handler: Path | None
    requirements: Path | None
    config: Path | None
    choose_by: Sequence[str]
    export_path: Path
    force: bool


def parser() -> argparse.ArgumentParser:
    """The command line: the model, its weights and labels first, TorchServe's settings last."""
    parser = argparse.ArgumentParser(prog=command_of("package"), description=DESCRIPTION, allow_abbrev=False)
    parser.usage = "%(prog)s MODEL [--weights FILE] [--labels FILE] [--name NAME] [...]"
    model = parser.add_argument_group("the model, one of").add_mutually_exclusive_group(required=True)
    add_model_flags(model)
    old = "an archive that is served already (.mar, .tar.gz)"
    model.add_argument("--from-archive", dest="archive", metavar="OLD", type=Path, help=old)
    parser.add_argument("--trust", action="store_true", help=f"with --from-archive, {TRUST}")
    add_class_flags(parser.add_argument_group("in the model's file"))
    group = parser.add_argument_group("its weights")
    weights = group.add_mutually_exclusive_group()
    add_weights_flag(weights)
    add_weights_key_flag(group)
    weights.add_argument("--random-weights", action="store_true", help="for trials; without either, the published ones")
    classes = parser.add_argument_group("its classes")
    add_labels_flag(classes)
    classes.add_argument("--positive", metavar="NAME", help="of a model of one logit: the class that it speaks for")
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
    own = "a handler of yours: a subclass of TorchServe's ImageClassifier, or of camserve's GradCAMHandler (docs/how-to/adopt.md)"
    archive.add_argument("--handler", metavar="FILE", type=Path, help=own)
    measured = "measure layers by methods on these pictures (files and folders), take the best by them, and keep the report"
    archive.add_argument("--choose-by", nargs="+", metavar="PICTURES", default=[], help=measured)
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
        trust=given.trust,
        positive=given.positive,
        keys={**read_keys(given), **({"random_weights": True} if given.random_weights else {})},
        settings={name: value for name, value in settings.items() if value is not None},
        name=given.name,
        version=given.version,
        extra_files=[name for text in given.extra_files for name in text.split(",")],
        handler=given.handler,
        requirements=given.requirements,
        config=given.config,
        choose_by=given.choose_by,
        export_path=given.export_path,
        force=given.force,
    )
    options.model.check()
    if options.handler and options.model.archive:
        raise ToolError("--handler goes with a model that comes without one; the archive of --from-archive brings its own")
    if options.positive is not None and (options.model.labels or not options.positive.strip()):
        raise ToolError("--positive: expected one name, and no --labels beside it, which name both classes")
    if options.version is not None and not re.fullmatch(NAME, options.version):
        raise ToolError(f"--version: expected letters, digits, '.', '_' and '-', got {options.version!r}")
    return options
