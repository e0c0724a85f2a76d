"""What `inspect_model` looks at: the model of an archive or of a file as it is, before a worker tunes it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from ts.torch_handler.image_classifier import ImageClassifier

from camserve.core.config import Config
from camserve.core.text import in_one_line
from camserve.pictures.preprocess import Preprocess
from camserve.tools.archive.archive import Archive, load_service, open_archive
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging import existing, keys, sources, staging

PROBE = (256, 256)
"""The picture, (width, height), whose tensor says how large the model's input is where it follows the picture's size."""


@dataclass(frozen=True)
class Subject:
    """A model, how pictures are prepared for it, and names of its classes, if known."""

    model: Any
    config: Config
    preprocess: Preprocess
    labels: Mapping[str, str] | None

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) that the model sees."""
        height, width = self.preprocess(Image.new("RGB", PROBE)).shape[1:]
        return height, width


def add_flags(made: argparse.ArgumentParser) -> None:
    """The archive, or packaging's flags that say which model."""
    made.add_argument(
        "archive", nargs="?", type=Path, metavar="ARCHIVE", help="an archive, camserve's or another; or else a model:"
    )
    made.add_argument("--torchvision", metavar="ARCH", help="a classifier of torchvision's, random weights unless --weights")
    made.add_argument("--model-file", metavar="FILE", type=Path, help="a file that defines one class without arguments")
    made.add_argument("--torchscript", metavar="FILE", type=Path, help="a TorchScript file, scripted or traced")
    made.add_argument("--exported", metavar="FILE", type=Path, help="a program that torch.export.save wrote")
    made.add_argument("--demo", action="store_true", help="EfficientNet-Lite0 with its ImageNet weights")
    made.add_argument("--weights", metavar="FILE", type=Path, help="a state dict, for --torchvision and --model-file")
    made.add_argument("--labels", metavar="FILE", type=Path, help='index_to_name.json: {"0": "tench", ...}')


@contextmanager
def opened_subject(options: argparse.Namespace, progress: Progress) -> Iterator[Subject]:
    """What the flags name; its files are there within the block.

    Raises:
        ToolError: nothing or several are named, or it does not load.
        ConfigError: a key of the configuration does not fit.
    """
    named = [options.archive, options.torchvision, options.model_file, options.torchscript, options.exported]
    if sum(each is not None for each in named) + options.demo != 1:
        raise ToolError(
            "give one of ARCHIVE, --torchvision ARCH, --model-file FILE, --torchscript FILE, --exported FILE and --demo"
        )
    if options.weights and not (options.torchvision or options.model_file):
        raise ToolError("--weights goes with --torchvision or --model-file; others bring their own")
    given, labels = keys.given_keys(options), staging.read_labels(options.labels) if options.labels else None
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        workdir = Path(folder)
        if options.archive:
            with open_archive(options.archive) as opened:
                subject = _of_archive(opened, given, workdir)
                yield replace(subject, labels=labels or subject.labels)
            return
        source = _source(options, workdir)
        for note in source.notes:
            progress.note(note)
        config = Config.from_mapping({**source.preprocessing, **given})
        names = {str(index): label for index, label in enumerate(source.labels)} if source.labels else None
        yield Subject(source.model, config, Preprocess(config), labels or names)


def _source(options: argparse.Namespace, workdir: Path) -> sources.Source:
    if options.demo:
        return sources.demo()
    if options.torchvision:
        return sources.from_torchvision(options.torchvision, workdir, options.weights, random=options.weights is None)
    if options.model_file and not options.weights:
        raise ToolError("--model-file needs --weights FILE")
    if options.model_file:
        return sources.from_file(options.model_file, options.weights, workdir)
    return sources.from_program(options.torchscript or options.exported)


def _of_archive(opened: Archive, given: Mapping[str, Any], workdir: Path) -> Subject:
    """The model of an archive that explains; of another as packaging would take it from there. `given` keys beat its own."""
    try:
        service = load_service(opened.directory)
    except Exception as error:
        raise ToolError(f"the archive does not load: {in_one_line(error)}") from error
    handler: Any = getattr(service._entry_point, "__self__", None)
    explain = {**(opened.config.get("explain") or {}), **given}
    if not hasattr(handler, "backend"):
        return _of_other(opened, explain, workdir)
    config = Config.from_mapping(explain)
    preprocess = handler._preprocess_of(config)
    handler.model = handler.backend = handler.pipeline = handler.ig = None  # tuned, and as large as the one that is to come
    return Subject(_untuned(handler, service.context), config, preprocess, handler.mapping)


def _untuned(handler: Any, context: Any) -> Any:
    """The model as the handler's class loads it, before camserve folds and rearranges its weights, and TorchServe compiles it."""
    context.model_yaml_config = {key: value for key, value in (context.model_yaml_config or {}).items() if key != "pt2"}
    again = type(handler)()
    ImageClassifier.initialize(again, context)
    return again.model


def _of_other(opened: Archive, explain: Mapping[str, Any], workdir: Path) -> Subject:
    stage = workdir / "stage"
    stage.mkdir()
    old = existing.read(opened, workdir, stage)
    config = Config.from_mapping(explain)
    own = old.handler.processing
    return Subject(old.source.model, config, Preprocess.from_callable(own) if own else Preprocess(config), old.labels)
