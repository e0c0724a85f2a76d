"""Measures a model that is open for inspection, and writes the report: what `inspect_model --fidelity` and packaging share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camserve.capture.backend import Backend, open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.explain.methods import METHODS, choose_method
from camserve.pictures.preprocess import Preprocess
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging.flags.inspect_model import Options
from camserve.tools.packaging.inspected import InspectedModel
from camserve.tools.reports.inspection.choice import choose
from camserve.tools.reports.inspection.fidelity import measure, read_inputs
from camserve.tools.reports.inspection.layers import list_few
from camserve.tools.reports.inspection.page import write_report
from camserve.tools.reports.pictures import list_pictures

Say = Callable[[str], None]


def measure_model(
    module: Any,
    config: Config,
    preprocess: Preprocess,
    size: tuple[int, int],
    paths: Sequence[Path],
    *,
    classes: int | None = None,
    say: Say,
    tell: Say,
) -> dict[str, Any]:
    """Measure a model's layers by methods on pictures, and choose; where the configuration names some, only these.

    Args:
        module: as it is loaded, neither folded nor compiled.
        size: (height, width) of its input.
        classes: how many labels there are, where that is known.
        say: is told what is left out; `tell`, which part of the work begins.

    Returns:
        The report of `choice.choose`.

    Raises:
        ToolError: too few pictures, or the model fails on them.
        ConfigError: no layer can be explained.
    """
    plain = replace(config, channels_last=False, memory_format=None, runtime="torch")
    inputs = read_inputs(paths, config, preprocess, say)
    size = (int(inputs[0].shape[1]), int(inputs[0].shape[2]))

    def opened(*layers: str) -> Backend:
        return open_backend(module, replace(plain, layers=layers), size, torch.device("cpu"), classes=classes)

    tell("finding layers")
    found = opened(*config.layers)
    own = found.layers[0], _method_of(config, found)
    layers = list(config.layers) or _usable(list_few(found), opened, say)
    methods = (config.method,) if "method" in config.given else tuple(METHODS)
    if not layers:
        raise ToolError("no layer of this model can be measured")
    measured = measure(lambda: opened(*layers), module, inputs, methods, tell)
    return choose(measured, own)


def measure_inspected(inspected: InspectedModel, options: Options, progress: Progress) -> None:
    """Measure the layers by methods on the pictures that the command names, say which is best, and write the report."""
    paths = list(list_pictures(map(Path, options.fidelity), progress.note))
    classes = len(inspected.labels) if inspected.labels else None
    with progress.step(f"Measure layers and methods on {len(paths)} pictures") as tell:
        report = measure_model(
            *(inspected.model, inspected.config, inspected.preprocess, inspected.size, paths),
            classes=classes,
            say=progress.note,
            tell=tell,
        )
    for path in write_report(report, options.model.default_name, options.report):
        progress.note(f"  {path}")
    progress.note(report["why"])


def _method_of(config: Config, backend: Backend) -> str:
    return choose_method(config, backend.uneven, backend.cancels)


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
