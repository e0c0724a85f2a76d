"""The metrics' names, and what `metrics.yaml` declares to TorchServe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.support.monitoring.monitors import METRICS_YAML

from camserve.monitoring.metrics import METRICS, Metric


def test_metrics_yaml_declares_every_metric_with_its_labels_in_order() -> None:
    """TorchServe drops what is not declared without a word, and takes labels by position."""
    declared = yaml.safe_load(METRICS_YAML.read_text())["model_metrics"]
    found = {
        (each["name"], kind.upper(), each["unit"], tuple(each["dimensions"]))
        for kind, several in declared.items()
        for each in several
    }

    assert {(m.name, m.kind, m.unit, (*m.labels, "model_name", "model_version")) for m in METRICS} <= found
    assert {name for name, *_ in found} == {m.name for m in METRICS} | {"HandlerTime", "PredictionTime"}


def test_metrics_yaml_keeps_all_of_torchserves_own_metrics() -> None:
    """Only one file is read: what it leaves out is gone."""
    import ts

    stock = yaml.safe_load((Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text())
    ours = yaml.safe_load(METRICS_YAML.read_text())

    for section in ("ts_metrics", "model_metrics"):
        for kind, several in stock[section].items():
            for each in several:
                assert each in ours[section][kind], each["name"]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    """The prefix, a base unit, `_total` for counters, and labels that are closed sets."""
    assert metric.name.startswith("camserve_")
    assert not re.search(r"_(ms|milliseconds|percent|kb|mb)(_|$)", metric.name)
    assert (metric.kind == "COUNTER") == metric.name.endswith(("_total", "_bucket", "_sum", "_count"))
    assert set(metric.labels) <= {"mode", "outcome", "reason", "stage", "le", "stat", "bin", "class_group", "reference"}
