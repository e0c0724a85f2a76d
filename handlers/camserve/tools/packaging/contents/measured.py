"""Chooses layer and method for an archive by measuring them on pictures, and puts the report into the archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camserve.core.config import Config
from camserve.core.geometry import input_size
from camserve.pictures.bounds.reading import silence_decoders
from camserve.pictures.preprocess import Preprocess
from camserve.tools.packaging.adoption.old_archive import OldArchive
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.probe import one_thread
from camserve.tools.reports.inspection.measuring import measure_model
from camserve.tools.reports.inspection.page import write_report
from camserve.tools.reports.pictures import list_pictures

Say = Callable[[str], None]


def choose_by_measuring(
    names: Sequence[str],
    loaded: tuple[ModelSource, OldArchive | None],
    asked: Mapping[str, Any],
    stage: Path,
    *,
    say: Say,
    tell: Say,
) -> dict[str, Any]:
    """Measure, write the report into the stage, and return the keys `layers` and `method` that it speaks for.

    Args:
        names: of pictures and folders.
        loaded: the model, and the archive that it comes from, if any.
        asked: keys of the configuration that were given; layers and a method among them are the only ones that are compared.
        say: is told what the user should hear; `tell`, which part of the work begins.

    Raises:
        ToolError: too few pictures, or the model fails on them.
        ConfigError: a key does not fit, or no layer can be explained.
    """
    silence_decoders()
    source, old = loaded
    config = Config.from_mapping(source.choose_keys({**(old.explain if old else {}), **asked}))
    own = old.handler.processing if old else None
    preprocess = Preprocess.from_callable(own) if own else Preprocess(config)
    size = (old.handler.size if old else None) or input_size(256, 256, config.resize, config.crop, config.fit)
    paths = list(list_pictures(map(Path, names), say))
    with one_thread():
        report = measure_model(source.model, config, preprocess, size, paths, say=say, tell=tell)
    write_report(report, "", stage)
    best = report["best"]
    say(f"Layer and method by measurement on {report['pictures']} pictures: {report['why']}; the report is in the archive")
    others = [layer for layer in config.layers if layer != best["layer"]]
    return {"layers": [best["layer"], *others], "method": best["method"]}
