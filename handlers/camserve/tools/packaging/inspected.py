"""What `inspect_model` looks at: the model of an archive or of a file as it is, before a worker tunes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ts.torch_handler.image_classifier import ImageClassifier

from camserve.core.config import Config
from camserve.core.errors import ArchiveError
from camserve.core.text import in_one_line
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.loading import check_handler, isolate_modules, load_module
from camserve.pipeline.loading import read_labels as read_archive_labels
from camserve.pipeline.opening import PROBE
from camserve.tools.archive.archive import Archive, face_of, handler_of, load_service, open_archive
from camserve.tools.archive.trust import review
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging.adoption.old_archive import read_old_archive
from camserve.tools.packaging.archiver import place_weights
from camserve.tools.packaging.contents.labels import read_labels
from camserve.tools.packaging.flags.model import ModelFlags


@dataclass(frozen=True)
class InspectedModel:
    """A model, how pictures are prepared for it, and names of its classes, if known.

    Attributes:
        weights: returns the file of its weights as an archive has it, which it writes where there is none yet.
    """

    model: Any
    config: Config
    preprocess: Preprocess
    labels: Mapping[str, str] | None
    weights: Callable[[], Path | None]

    def __post_init__(self) -> None:
        """Give the configuration the channels that the preprocessing makes."""
        channels = self.preprocess.input_shape(*PROBE)[0]
        object.__setattr__(self, "config", replace(self.config, channels=channels))

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width), in pixels, that the model sees."""
        _, height, width = self.preprocess.input_shape(*PROBE)
        return height, width


@contextmanager
def open_inspected(
    flags: ModelFlags, keys: Mapping[str, Any], progress: Progress, trusted: bool = False
) -> Iterator[InspectedModel]:
    """Loads what the flags name; its files are there within the block. `keys` of the configuration beat an archive's own.

    `trusted`: code of an archive's own may run; what it holds is said before.

    Raises:
        ToolError: flags that do not go together, or a model that does not load.
        ConfigError: a key of the configuration does not fit.
    """
    flags.check()
    labels = read_labels(flags.labels) if flags.labels else None
    with tempfile.TemporaryDirectory(prefix="camserve-") as folder:
        workdir = Path(folder)
        if flags.archive:
            # its model may import more when it runs
            with open_archive(flags.archive) as opened:
                review(flags.archive, opened, trusted, progress.note)
                with isolate_modules(opened.directory):
                    inspected = _load_archive(opened, keys, workdir)
                    yield replace(inspected, labels=labels or inspected.labels)
            return
        flags.check_files()
        source = flags.load(workdir, workdir)
        for note in source.notes:
            progress.note(note)
        config = Config.from_mapping(source.choose_keys(keys))
        weights = partial(place_weights, source, workdir)
        yield InspectedModel(source.model, config, Preprocess(config), labels or source.label_mapping, weights)


def _load_archive(opened: Archive, keys: Mapping[str, Any], workdir: Path) -> InspectedModel:
    """Loads the model of an archive, before camserve folds and rearranges its weights, or compiles it."""
    explain = {**(opened.config.get("explain") or {}), **keys}
    try:
        check_handler(opened)
    except ArchiveError:  # it has steps of its own
        return _load_handler(opened, explain, workdir)
    config = Config.from_mapping(explain)
    as_it_is = replace(opened, config={key: value for key, value in opened.config.items() if key != "pt2"})
    model = load_module(as_it_is, torch.device("cpu"))
    return InspectedModel(model, config, Preprocess(config), read_archive_labels(opened.directory), _weights_of(opened))


def _load_handler(opened: Archive, explain: Mapping[str, Any], workdir: Path) -> InspectedModel:
    """Loads the model with the archive's own handler; where that does not explain, as packaging would take it from there."""
    try:
        service = load_service(opened.directory)
    except Exception as error:
        raise ToolError(f"the archive does not load: {in_one_line(error)}") from error
    if face_of(service) is None:
        return _load_other(opened, explain, workdir)
    handler = handler_of(service)
    config = Config.from_mapping(explain)
    preprocess = handler.preprocess_of(config)
    handler.model = handler.face = handler.ig = None  # tuned, and as large as the one that is to come
    return InspectedModel(_load_untuned(handler, service.context), config, preprocess, handler.mapping, _weights_of(opened))


def _load_untuned(handler: Any, context: Any) -> Any:
    """Loads the model as the handler's class does, before it is tuned, and before TorchServe compiles it."""
    context.model_yaml_config = {key: value for key, value in (context.model_yaml_config or {}).items() if key != "pt2"}
    again = type(handler)()
    ImageClassifier.initialize(again, context)
    return again.model


def _load_other(opened: Archive, explain: Mapping[str, Any], workdir: Path) -> InspectedModel:
    stage = workdir / "stage"
    stage.mkdir()
    old = read_old_archive(opened, workdir, stage)
    config = Config.from_mapping(explain)
    own = old.handler.processing
    return InspectedModel(
        old.source.model, config, Preprocess.from_callable(own) if own else Preprocess(config), old.labels, _weights_of(opened)
    )


def _weights_of(opened: Archive) -> Callable[[], Path | None]:
    return lambda: opened.file("serializedFile")
