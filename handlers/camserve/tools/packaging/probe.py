"""Runs a model once, to find its layers and what is odd about it, before an archive is made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from camserve.capture.backend import Backend, open_backend
from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.survey.layout import synthesize_pictures
from camserve.capture.survey.outputs import name_path
from camserve.capture.survey.reader import OutputReader
from camserve.capture.tuning.fold import fold_norms
from camserve.capture.tuning.memory_format import choose_memory_format
from camserve.core.config import Config
from camserve.core.geometry import input_size
from camserve.explain.methods import check_method, choose_method
from camserve.tools.packaging.adoption.old_archive import OldArchive
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler
from camserve.tools.packaging.contents.runtime import choose_runtime, record_graph
from camserve.tools.packaging.models import advice
from camserve.tools.packaging.models.source import ModelSource

NOTE_ON_METHOD = (
    "Method {}, since {}: on such models its maps point better than those of gradcam++, the default elsewhere; "
    "--method chooses another"
)


@dataclass(frozen=True)
class Probed:
    """What running a model once has shown.

    Attributes:
        explain: the section `explain:` as it stands.
        config: that section as the worker will read it.
        layers: the layers that are explained; the first is the default.
        reader: how the model's scores are read.
        outputs: how many classes the model scores.
        shape: of the input on which it was run, `[1, channels, height, width]`.
        notes: what the user should hear.
    """

    explain: Mapping[str, Any]
    config: Config
    layers: tuple[str, ...]
    outputs: int
    reader: OutputReader
    shape: tuple[int, ...]
    notes: tuple[str, ...]


Tell = Callable[[str], None]
"""Is told which part of the work begins, in words."""


def probe_model(
    source: ModelSource,
    old: OldArchive | None,
    asked: Mapping[str, Any],
    classes: int | None = None,
    tell: Tell = lambda _part: None,
    *,
    handler: AdoptedHandler,
    stage: Path | None = None,
) -> Probed:
    """Runs the model as a worker will; keys that are `asked` for beat the old archive's, and these the model's own.

    Args:
        classes: how many labels there are, which may tell where the model's scores are; None: it is not known.
        tell: is told which part of the work begins.
        handler: may prepare pictures in its own way.
        stage: a folder of files that the archive will hold; None: no archive is made, so no runtime is chosen.

    Raises:
        ToolError: the runtime that is asked for cannot be had.
        ConfigError: a key does not fit, the model does not run, or a layer cannot be explained.
    """
    origins = {"the model's own": source.preprocessing, "the archive's": old.explain if old else {}, "as asked": asked}
    explain = source.choose_keys({**origins["the archive's"], **asked})
    config = Config.from_mapping(explain)
    config = replace(config, channels=handler.channels) if handler.processing else config
    size = handler.size or input_size(256, 256, config.resize, config.crop, config.fit)
    backend = _run(source, config, (size, handler.size is not None), classes, tell)
    check_method(config, backend.placed)
    tell("measuring which memory format is fastest")
    recorded, remarks = _measure_format(source, config, backend, size)
    recorded |= _record_scores(config, backend)
    method = choose_method(config, backend.uneven, backend.cancels)
    if method != config.method and not (old and old.explain):  # an archive of ours keeps its own
        recorded["method"] = method
        remarks = [*remarks, NOTE_ON_METHOD.format(method, backend.uneven)]
    if backend.kind == "onnx":
        chosen = record_graph(replace(config, **recorded), backend, size, asked="runtime" in asked)
        recorded["runtime"], remarks = chosen.runtime, [*remarks, *chosen.notes]
    elif config.runtime != "torch" and stage is not None:
        tell("trying the runtime")
        given = replace(config, **recorded)
        chosen = choose_runtime(source, given, backend, size, stage, asked="runtime" in asked)
        recorded["runtime"], remarks = chosen.runtime, [*remarks, *chosen.notes]
    explain.update(recorded)
    notes = [*advice.describe_layers(backend), *advice.describe_preparation(config, origins, handler), *backend.notes, *remarks]
    shape = (1, config.channels, *size)
    return Probed(
        explain, replace(config, **recorded), tuple(backend.layers), backend.outputs, backend.reader, shape, tuple(notes)
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: on a busy machine a few small runs wait longer for threads than they gain by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(source: ModelSource, config: Config, given: tuple[tuple[int, int], bool], classes: int | None, tell: Tell) -> Backend:
    """Runs the model on pictures of the given size, and with whether a handler's own code prepares the pictures."""
    size, own = given
    later = "torch" if not isinstance(source.model, GraphModule) else config.runtime
    quick = replace(config, channels_last=False, memory_format=None, runtime=later)  # those are measured later
    with one_thread(), advice.suggest_size(source.model, size, config, own=own):
        return open_backend(source.model, quick, size, torch.device("cpu"), classes=classes, tell=tell)


def _record_scores(config: Config, backend: Backend) -> dict[str, Any]:
    """Return the keys that say what a trial showed of the model's scores, so that no worker can come to another result."""
    keys: dict[str, Any] = {}
    if config.output is None and backend.reader.path:
        name = name_path(backend.reader.path)
        keys["output"] = int(name) if name.isdecimal() else name
    if backend.reader.kind == "sigmoid":
        keys["scores"] = "sigmoid"
    return keys


def _measure_format(
    source: ModelSource, config: Config, backend: Backend, size: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """Measure, on a copy, in which memory format the model runs fastest with equal answers; unless a key says which.

    Workers that measured for themselves could come to different results, and so answer differently in the last digits.
    """
    if config.given & {"channels_last", "memory_format"} or backend.kind != "eager" or config.precision != "float32":
        return {}, []
    try:
        model = copy.deepcopy(source.model)
    except Exception:  # noqa: BLE001 whatever a model's own __deepcopy__ raises: workers measure for themselves then
        return {}, []
    pictures = synthesize_pictures(size, config=config)
    fold_norms(model, pictures, backend.layers, backend.reader)
    form = choose_memory_format(model, pictures, None, True, reader=backend.reader)
    processor = torch.backends.cpu.get_cpu_capability()
    note = (
        f"Memory format: {form}, the fastest here ({processor}) with equal answers, is recorded, so that replicas answer alike; "
        "--memory-format null lets each worker measure"
    )
    return {"memory_format": form}, [note]
