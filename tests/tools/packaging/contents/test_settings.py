"""An archive's model-config.yaml: how settings are merged and written."""

from __future__ import annotations

from pathlib import Path

import yaml

from camserve.tools.commands import package
from camserve.tools.packaging.contents.settings import merge_settings, write_settings


def test_settings_are_plain_yaml(tmp_path: Path) -> None:
    """TorchServe's Java side and `yaml.safe_load` read the same: no tags of Python's."""
    path = write_settings(tmp_path, {"batchSize": 2}, {"layers": ("a",), "mean": (0.5, 0.5, 0.5)})
    assert "!!" not in path.read_text()
    assert yaml.safe_load(path.read_text()) == {"batchSize": 2, "explain": {"layers": ["a"], "mean": [0.5, 0.5, 0.5]}}


def test_flags_for_workers_beat_a_configurations(tmp_path: Path) -> None:
    """They set both numbers; a maximum is raised to a minimum that stands alone."""
    options = package.parse(["--demo", "--workers", "2"])
    assert merge_settings({"maxWorkers": 9}, {"minWorkers": 5}, options.settings)["maxWorkers"] == 2
    options = package.parse(["--demo"])
    assert merge_settings({"minWorkers": 4}, {}, options.settings)["maxWorkers"] == 4
    assert merge_settings({"batchSize": 3}, {"batchSize": 5}, options.settings)["batchSize"] == 5
