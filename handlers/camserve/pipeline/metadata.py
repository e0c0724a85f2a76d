"""What the management API shows of an archive: `GET /models/{model}?customized=true`."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import PIL
import torch

from camserve.capture.backend import Backend
from camserve.capture.survey.outputs import name_path
from camserve.core.config import COLORMAPS, Config
from camserve.core.config.switch import tell_why_not
from camserve.core.messages import name_layer
from camserve.core.served import Measurement, Served
from camserve.core.version import __version__
from camserve.explain.observer import Observer
from camserve.monitoring.monitor import Monitor
from camserve.protocol.openapi.document import describe_api

logger = logging.getLogger(__name__)

LIMITS = (
    "max_pixels",
    "max_request_pixels",
    "max_picture_side",
    "max_response_bytes",
    "max_targets",
    "max_instances",
    "max_checks",
    "max_batch",
    "max_work",
    "max_seconds",
)


MEASURED = "fidelity.json"
"""The report in an archive of which layer and method were chosen by measuring."""


PROVENANCE = ("made", "weights", "input", "seed", "pictures_digest")
"""What a report says of how it came about; those of earlier releases do not."""


def read_choice(directory: Path | str | None, weights: str, given: str) -> tuple[Measurement | None, dict[str, Any] | None]:
    """Read by which measurement an archive's layer and method were chosen, and whether that holds for what is served.

    Args:
        weights: the served ones, `sha256:` and a digest.
        given: how pictures are prepared and scores are read (`describe_input`).

    Returns:
        What answers tell of it, and what the metadata show: all but the figures of the others. None where there is no report.
    """
    path = Path(directory or ".") / MEASURED
    if directory is None or not path.is_file():
        return None, None
    try:
        text = path.read_bytes()
        report = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        rows = {(row["layer"], row["method"]): row for row in report["rows"]}
        chosen = report["best"]["layer"], report["best"]["method"]
        shown = {
            **report["best"],
            **{name: report[name] for name in ("camserve", "rule", "pictures", "quarters", "why")},
            **{name: rows[chosen][name] for name in ("figures", "score", "cost")},
            **{name: report.get(name) for name in PROVENANCE},
            "compared": len(rows),
            "report": f"sha256:{hashlib.sha256(text).hexdigest()}",
            "mismatch": _find_mismatch(report, weights, given),
        }
        measured = Measurement(
            report=shown["report"],
            made=str(report.get("made", "")),
            pictures=int(report["pictures"]),
            chosen=chosen,
            rows={each: _read_row(row) for each, row in rows.items()},
            mismatch=shown["mismatch"] or "",
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        logger.warning("camserve: %s in the archive is no report of what was measured, and is not shown", MEASURED)
        return None, None
    if measured.mismatch:
        logger.warning("camserve: what was measured of layers and methods does not hold here: %s", measured.mismatch)
    return measured, shown


def _find_mismatch(report: Mapping[str, Any], weights: str, given: str) -> str | None:
    """Find why a report does not hold for what is served: of other weights, or another input, it says nothing."""
    if not report.get("weights"):
        return f"camserve {report['camserve']} wrote it, which did not say which weights were measured"
    if report["weights"] != weights:
        return f"the weights {str(report['weights'])[:19]} were measured, and {weights[:19] or 'unknown ones'} are served"
    if report["input"] != given:
        return f"measured was with {report['input']!r}, and served is with {given!r}"
    return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON can have")
    return number


def _read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"out": bool(row["out"]), "score": _spell(row["score"]), "support": _spell(row["figures"]["support"])}


def _spell(figure: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(figure[name]) for name in ("mean", "low", "high")}


def describe(served: Served, backend: Backend) -> dict[str, Any]:
    """Describe what is served and how it runs, after the self-test: a worker that fails it never gets ready."""
    config, labels, model = served.config, served.labels, served.model
    return {
        "camserve": __version__,
        "model": model.name,
        "version": model.version,
        "weights": model.weights,
        "random_weights": config.random_weights,
        "method": config.method,
        "methods": list(served.methods),
        "layer": name_layer(served.default_layer),
        "layers": list(backend.layers),
        "closed_form": list(backend.closed_form),
        "bypass": {layer: None if share is None else round(share, 3) for layer, share in backend.bypass.items()},
        "beside": {layer: round(share, 3) for layer, share in backend.beside.items()},
        "doubts": dict(backend.doubts),
        "scores": served.scores,
        **({"threshold": config.threshold} if served.by_threshold else {}),  # TorchServe's frontend would leave out a null
        **({"output": name_path(backend.reader.path)} if backend.reader.path else {}),
        "cells": {layer: aligned.describe() for layer, aligned in backend.aligned.items()},
        "labels": len(labels),
        "labelled": labels.given,
        "channels": config.channels,
        "input_size": list(served.size or ()),
        "formats": list(config.formats),
        "colormaps": list(COLORMAPS),
        "precision": config.precision,
        "kind": backend.kind,
        "compiled": backend.compiled,
        "channels_last": backend.channels_last,
        "memory_format": backend.memory_format,
        "runtime": _describe_runtime(config, backend),
        "limits": {name: getattr(config, name) for name in LIMITS},
        "versions": {
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
        "self_test": "ok",
        "openapi": describe_api(served),
    }


def describe_watching(observer: Observer, config: Config) -> dict[str, Any]:
    """Describe what is watched and kept, and why not, where nothing is."""
    monitor = observer if isinstance(observer, Monitor) else None
    kept = monitor.describe_evidence() if monitor else None
    why = {"kept": False, "why": tell_why_not(config)}
    return {"monitor": monitor.describe() if monitor else None, "evidence": kept or why}


def _describe_runtime(config: Config, backend: Backend) -> dict[str, Any]:
    """Say what computes the trunk, in which version, which layers it gives, and why it is not the one that was asked for."""
    runtime = backend.runtime
    described = {"name": runtime.name, "asked": config.runtime, "version": runtime.version, "layers": list(runtime.layers)}
    return {**described, "why": runtime.why}
