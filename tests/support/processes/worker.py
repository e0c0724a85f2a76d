"""An archive's handler in this process, as a worker loads it of a server that exports our metrics."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.support import build
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import ModelLoaderFactory

from camserve.monitoring.monitor import Monitor
from camserve.tools.archive.archive import SHARED, handler_of
from camserve.tools.archive.fresh.modules import drop, top_modules

METRICS_YAML = build.HANDLERS / "camserve" / "metrics.yaml"


def load_monitored(directory: Path) -> Any:
    """The unpacked archive's service; what its monitor tells after it has started goes nowhere."""
    drop(top_modules(directory).difference(SHARED))  # another test's archive may have modules of these names
    sys.path[:] = [str(directory), *(each for each in sys.path if each != str(directory))]
    model = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TorchServe leaves the file open
        metrics = MetricsCacheYamlImpl(str(METRICS_YAML))
        metrics.initialize_cache()
    loader = ModelLoaderFactory.get_model_loader()
    service = loader.load(model["modelName"], str(directory), model["handler"], None, 1, metrics_cache=metrics)
    service.set_cl_socket(None)
    observer = handler_of(service).face.observer
    if isinstance(observer, Monitor):
        observer._exporter._write = len
    return service
