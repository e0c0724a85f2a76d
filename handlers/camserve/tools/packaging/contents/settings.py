"""An archive's `model-config.yaml`: TorchServe's settings, and the section `explain:` with camserve's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import CONFIG

DEFAULTS = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 8,
    "maxBatchDelay": 1,
    "responseTimeout": 120,
    "startupTimeout": 300,
}
"""TorchServe's settings where nothing else gives them. How many requests may wait (`jobQueueSize`) depends on the server's
memory, so the server's `job_queue_size` says it."""


@dataclass(frozen=True)
class ModelConfig:
    """A `model-config.yaml`, neither part of it checked: TorchServe's settings, and the section `explain:`."""

    server: Mapping[str, Any] = field(default_factory=dict)
    explain: Mapping[str, Any] = field(default_factory=dict)


def read_settings(path: Path) -> ModelConfig:
    """Reads a `model-config.yaml` that the flag `--config` names.

    Raises:
        ToolError: no such file, or not such a mapping.
    """
    if not path.is_file():
        raise ToolError(f"--config: there is no file {path}")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ToolError(f"--config {path}: it is not YAML: {' '.join(str(error).split())}") from error
    explain = content.get("explain") or {} if isinstance(content, dict) else None
    if not isinstance(explain, dict):
        wanted = "expected a mapping of TorchServe's settings, with a mapping `explain:` of camserve's keys or without"
        raise ToolError(f"--config {path}: {wanted}")
    return ModelConfig({str(key): value for key, value in content.items() if key != "explain"}, explain)


def write_settings(folder: Path, settings: Mapping[str, Any], explain: Mapping[str, Any]) -> Path:
    """Writes `model-config.yaml`: TorchServe's own settings, and the section `explain:`. Returns its path."""
    path = folder / CONFIG
    path.write_text(yaml.safe_dump({**settings, "explain": dict(explain)}, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def merge_settings(old: Mapping[str, Any], config: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Merges TorchServe's settings: `flags` beat those of --config, these the old archive's, and these the defaults.

    Raises:
        ToolError: --config gives one that TorchServe would leave out, or more workers at least than at most.
    """
    for name in (*DEFAULTS, "jobQueueSize"):
        value = config.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ToolError(f"--config: {name}: expected a whole number, 0 or more, got {value!r}")
    asked = {**old, **config, **flags}
    settings = {**DEFAULTS, **asked}
    low, high = settings["minWorkers"], settings["maxWorkers"]
    if isinstance(low, int) and isinstance(high, int) and low > high:
        if "maxWorkers" in asked:
            raise ToolError(f"minWorkers is {low} and maxWorkers {high}, which TorchServe does not take; --workers sets both")
        settings["maxWorkers"] = low
    return settings
