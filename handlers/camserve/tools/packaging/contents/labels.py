"""The classes' names: read from what people have, and written as `index_to_name.json`, as TorchServe's stock handlers read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from camserve.core.errors import ConfigError
from camserve.core.labels import parse_labels
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import LABELS


def read_labels(path: Path) -> dict[str, str]:
    """Reads index and name of each class, in any form that `parse_labels` takes.

    Raises:
        ToolError: no such file, no labels, or labels that can be read in two ways.
    """
    if not path.is_file():
        raise ToolError(f"--labels: there is no file {path}")
    try:
        return parse_labels(path.read_bytes())
    except ConfigError as error:
        raise ToolError(f"--labels {path}: {error}") from error


def write_labels(staging: Path, labels: Mapping[str, str]) -> None:
    """Writes `index_to_name.json` into `staging`."""
    (staging / LABELS).write_text(json.dumps(dict(labels), ensure_ascii=False, indent=0) + "\n", "utf-8")
