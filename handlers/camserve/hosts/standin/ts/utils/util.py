"""Labels, a model file's class, and the error that a handler raises with a status of its own."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)


class PredictionException(Exception):  # noqa: N818 the name that handlers import
    """Fails a whole batch with a status and a message."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Lists the classes that a module itself defines."""
    own = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    return [each for each in own if parent_class is None or issubclass(each, parent_class)]


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Reads `index_to_name.json`: index to label, where a list's last entry is the label; None where there is no file."""
    path = Path(mapping_file_path)
    if not path.is_file():
        logger.warning("%s is missing. Inference output will not include class name.", path.name)
        return None
    mapping = json.loads(path.read_text())
    if not isinstance(mapping, dict):
        raise Exception('index->name JSON mapping should be in "class": "label" format.')
    if isinstance(mapping.get("object_type_names"), list):
        return {str(index): label for index, label in enumerate(mapping["object_type_names"])}
    labels = {key: value[-1] if isinstance(value, list) else value for key, value in mapping.items()}
    if not all(isinstance(label, str) for label in labels.values()):
        raise Exception("labels in index->name mapping must be either str or List[str]")
    return labels


def map_class_to_label(
    probs: Sequence[Sequence[float]], mapping: Mapping[str, str] | None = None, lbl_classes: Any = None
) -> list[dict[str, float]]:
    """Names each row's probabilities; without a mapping by their indices."""
    classes = [range(len(row)) for row in probs] if lbl_classes is None else lbl_classes
    return [
        {(str(index) if mapping is None else mapping[str(index)]): value for index, value in zip(names, row, strict=False)}
        for names, row in zip(classes, probs, strict=False)
    ]
