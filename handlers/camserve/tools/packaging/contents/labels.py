"""The classes' names: `index_to_name.json`, as TorchServe's stock handlers read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ts.utils.util import load_label_mapping

from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import LABELS


def read_labels(path: Path) -> dict[str, str]:
    """Reads index and name of each class, in any of the forms that TorchServe's stock handlers take.

    Raises:
        ToolError: no such file, or not labels.
    """
    if not path.is_file():
        raise ToolError(f"--labels: there is no file {path}")
    try:
        return {str(index): str(name) for index, name in load_label_mapping(str(path)).items()}
    except Exception as error:  # that function raises bare exceptions
        raise ToolError(f'--labels {path}: expected {{"0": "tench", ...}}: {error}') from error


def write_labels(staging: Path, labels: Mapping[str, str]) -> None:
    """Writes `index_to_name.json` into `staging`."""
    (staging / LABELS).write_text(json.dumps(dict(labels), ensure_ascii=False, indent=0) + "\n", "utf-8")
