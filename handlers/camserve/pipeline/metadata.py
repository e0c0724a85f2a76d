"""What the management API shows of an archive: `GET /models/{model}?customized=true`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
import torchvision

from camserve.capture.backend import Backend
from camserve.capture.survey.outputs import name_path
from camserve.core.config import COLORMAPS, Config
from camserve.core.served import Served
from camserve.core.version import __version__
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


def read_choice(directory: Path | str | None) -> dict[str, Any] | None:
    """Read by which measurement an archive's layer and method were chosen, without the others' figures; None without any."""
    path = Path(directory or ".") / MEASURED
    if directory is None or not path.is_file():
        return None
    try:
        report = json.loads(path.read_bytes())
        best = report["best"]
        row = next(row for row in report["rows"] if (row["layer"], row["method"]) == (best["layer"], best["method"]))
        return {
            **best,
            **{name: report[name] for name in ("camserve", "rule", "pictures", "quarters", "why")},
            **{name: row[name] for name in ("figures", "score", "cost")},
            "compared": len(report["rows"]),
        }
    except (ValueError, LookupError, TypeError, StopIteration):
        logger.warning("camserve: %s in the archive is no report of what was measured, and is not shown", MEASURED)
        return None


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
        "layer": backend.layers[0],
        "layers": list(backend.layers),
        "closed_form": list(backend.closed_form),
        "bypass": {layer: None if share is None else round(share, 3) for layer, share in backend.bypass.items()},
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
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
        "self_test": "ok",
        "openapi": describe_api(served),
    }


def _describe_runtime(config: Config, backend: Backend) -> dict[str, Any]:
    """Say what computes the trunk, in which version, which layers it gives, and why it is not the one that was asked for."""
    runtime = backend.runtime
    described = {"name": runtime.name, "asked": config.runtime, "version": runtime.version, "layers": list(runtime.layers)}
    return {**described, "why": runtime.why}
