"""Measures a model that is open for inspection, and writes the report: what `inspect_model --fidelity` and packaging share."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from camserve.capture.backend import Backend, open_backend
from camserve.core.config import REFINECAM, Config
from camserve.core.errors import ConfigError
from camserve.explain.methods import METHODS, check_method, choose_method, find_method
from camserve.monitoring.reference import describe_input
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.loading import digest_file
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging.flags.inspect_model import Options
from camserve.tools.packaging.inspected import InspectedModel
from camserve.tools.reports.inspection.choice import choose
from camserve.tools.reports.inspection.fidelity import Candidate, measure
from camserve.tools.reports.inspection.inputs import read_inputs
from camserve.tools.reports.inspection.layers import list_few
from camserve.tools.reports.inspection.page import write_report
from camserve.tools.reports.pictures import list_pictures

Say = Callable[[str], None]


@dataclass(frozen=True)
class Opened:
    """A model that is measured.

    Attributes:
        module: as it is loaded, neither folded nor compiled.
        classes: how many labels there are; None: it is not known.
        weights: `sha256:` and the digest of their file, as an archive of this model has it.
        asked: keys of the configuration that the user gave; `layers` and `method` among them are the only ones that are compared.
            Those of an archive are what it serves so far, and limit nothing.
    """

    module: Any
    config: Config
    preprocess: Preprocess
    classes: int | None
    weights: str
    asked: Collection[str] = ()


def measure_model(model: Opened, paths: Sequence[Path], *, say: Say, tell: Say) -> dict[str, Any]:
    """Measure a model's layers by methods on pictures, and choose.

    Args:
        model: what is measured.
        paths: of pictures.
        say: is told what is left out; `tell`, which part of the work begins.

    Returns:
        The report: what `choice.choose` and `Inputs.describe` return; when it was `made`; `weights`; `input`, as
        `describe_input` writes it; and the `versions` of what computed it.

    Raises:
        ToolError: too few pictures, or the model fails on them.
        ConfigError: no layer can be explained.
    """
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    inputs = read_inputs(paths, model.config, model.preprocess, say)
    channels, height, width = inputs.tensors[0].shape
    config = replace(model.config, channels=channels, channels_last=False, memory_format=None, runtime="torch")

    def opened(*layers: str) -> Backend:
        given = replace(config, layers=layers), (height, width), torch.device("cpu")
        return open_backend(model.module, *given, classes=model.classes)

    tell("finding layers")
    found = opened(*config.layers)
    method = choose_method(config, found.uneven, found.cancels)
    own: Candidate = (found.placed if method == REFINECAM else found.layers[0], method)
    layers = list(config.layers)
    if not layers or "layers" not in model.asked:
        layers = _usable(list(dict.fromkeys([*layers, *list_few(found)])), opened, say)
    named = (*METHODS, REFINECAM)
    every = [name for name in named if found.reader.kind != "none" or not find_method(name).contrasts]  # as `Served.methods`
    methods = [config.method] if "method" in model.asked else every
    if not layers:
        raise ToolError("no layer of this model can be measured")
    if methods == [REFINECAM]:
        check_method(config, opened(*layers).placed)
    measured = measure(lambda: opened(*layers), model.module, inputs.tensors, methods, tell)
    return {
        **choose(measured, own),
        **{"made": made, "weights": model.weights, "input": describe_input(config, found.reader.describe())},
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__},
        **inputs.describe(),
    }


def measure_inspected(inspected: InspectedModel, options: Options, progress: Progress) -> None:
    """Measure the layers by methods on the pictures that the command names, say which is best, and write the report."""
    paths = list(list_pictures(map(Path, options.fidelity), progress.note))
    classes = len(inspected.labels) if inspected.labels else None
    with progress.step(f"Measure layers and methods on {len(paths)} pictures") as tell:
        weights = f"sha256:{digest_file(inspected.weights())}"
        given = Opened(inspected.model, inspected.config, inspected.preprocess, classes, weights, options.keys)
        report = measure_model(given, paths, say=progress.note, tell=tell)
    for path in write_report(report, options.model.default_name, options.report):
        progress.note(f"  {path}")
    progress.note(report["why"])


def _usable(layers: Sequence[str], opened: Callable[..., Backend], say: Say) -> list[str]:
    """Leave out layers that cannot be explained, with a word."""
    try:
        opened(*layers)
    except ConfigError:
        kept = []
        for layer in layers:
            try:
                opened(layer)
            except ConfigError as error:
                say(f"{layer} is left out: {error}")
            else:
                kept.append(layer)
        return kept
    return list(layers)
