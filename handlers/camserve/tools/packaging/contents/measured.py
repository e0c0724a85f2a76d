"""Chooses layer and method for an archive by measuring them on pictures, and puts the report into the archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from camserve.core.config import REFINECAM, Config
from camserve.pictures.bounds.reading import silence_decoders
from camserve.pictures.preprocess import Preprocess
from camserve.pipeline.loading import digest_file
from camserve.tools.packaging.adoption.old_archive import OldArchive
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler
from camserve.tools.packaging.archiver import place_weights
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.probe import one_thread
from camserve.tools.reports.inspection.measuring import Opened, measure_model
from camserve.tools.reports.inspection.page import write_report
from camserve.tools.reports.pictures import list_pictures

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measurable:
    """A model that is packaged: the archive that it comes from, if any, its handler, how many labels it has, and its name."""

    source: ModelSource
    old: OldArchive | None
    handler: AdoptedHandler
    classes: int | None
    name: str


class Folders(Protocol):
    """Where files lie that the archive will hold (`stage`), and others on the way."""

    @property
    def stage(self) -> Path:
        """Of the archive."""

    @property
    def workdir(self) -> Path:
        """Of the weights."""


def choose_by_measuring(
    names: Sequence[str], model: Measurable, asked: Mapping[str, Any], folders: Folders, *, say: Say, tell: Say
) -> dict[str, Any]:
    """Measure, write the report into the stage, and return the keys `layers` and `method` that it speaks for.

    Args:
        names: of pictures and folders.
        model: what is measured.
        asked: keys of the configuration that were given; layers and a method among them are the only ones that are compared.
        folders: the weights are put where packaging takes them from: the report says their digest in the archive.
        say: is told what the user should hear; `tell`, which part of the work begins.

    Raises:
        ToolError: too few pictures, or the model fails on them.
        ConfigError: a key does not fit, or no layer can be explained.
    """
    silence_decoders()
    source, old, handler = model.source, model.old, model.handler
    config = Config.from_mapping(source.choose_keys({**(old.explain if old else {}), **asked}))
    preprocess = Preprocess.from_callable(handler.processing) if handler.processing else Preprocess(config)
    paths = list(list_pictures(map(Path, names), say))
    weights = f"sha256:{digest_file(place_weights(source, folders.workdir))}"
    given = Opened(source.model, config, preprocess, model.classes, weights, asked)
    with one_thread():
        report = measure_model(given, paths, say=say, tell=tell)
    write_report(report, model.name, folders.stage)
    say(f"Layer and method by measurement on {report['pictures']} pictures: {report['why']}; the report is in the archive")
    return write_keys(report["best"], config.layers)


def write_keys(best: Mapping[str, str], served: Sequence[str]) -> dict[str, Any]:
    """Return the keys `layers` and `method` that a report's best layer and method stand for, beside what is `served` so far.

    Of several layers the one that runs last comes first: it is watched, and the default of every other method.
    """
    *earlier, last = best["layer"].split(",") if best["method"] == REFINECAM else [best["layer"]]
    return {"layers": list(dict.fromkeys([last, *earlier, *served])), "method": best["method"]}
