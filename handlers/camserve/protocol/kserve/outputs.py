"""V2's output tensors: their names and types, and how answers fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from camserve.core.errors import RequestError
from camserve.core.messages import Answer


@dataclass(frozen=True)
class OutputTensor:
    """One output.

    Attributes:
        datatype: V2's name of its type.
        rank: how many dimensions it has; the first counts the request's images.
        value: JSON Schema of one element.
        collect: makes the array of all answers: int64, float32, or objects that are str.
    """

    datatype: Literal["BYTES", "INT64", "FP32"]
    rank: int
    value: Mapping[str, Any]
    collect: Callable[[Sequence[Answer]], NDArray[Any]]


def _labels(answers: Sequence[Answer]) -> NDArray[Any]:
    return np.array([[score.label for score in answer.classes] for answer in answers], dtype=object)


def _indices(answers: Sequence[Answer]) -> NDArray[Any]:
    return np.array([[score.index for score in answer.classes] for answer in answers], dtype=np.int64)


def _probabilities(answers: Sequence[Answer]) -> NDArray[Any]:
    return np.array([[score.probability for score in answer.classes] for answer in answers], dtype=np.float32)


def _heatmaps(answers: Sequence[Answer]) -> NDArray[Any]:
    first = answers[0].explanations[0].heatmap.shape
    for index, answer in enumerate(answers):
        for explanation in answer.explanations:
            if explanation.heatmap.shape != first:
                height, width = explanation.heatmap.shape
                message = (
                    f"instance {index}: its heatmap is {height} x {width}, the first one's {first[0]} x {first[1]}; "
                    "one V2 request takes images whose heatmaps have one shape: ask in V1, or without the output heatmap"
                )
                raise RequestError(400, "InvalidImage", message)
    return np.stack([np.stack([explanation.heatmap for explanation in answer.explanations]) for answer in answers])


def _targets(answers: Sequence[Answer]) -> NDArray[Any]:
    return np.array([[explanation.target for explanation in answer.explanations] for answer in answers], dtype=np.int64)


def _ranges(answers: Sequence[Answer]) -> NDArray[Any]:
    """NaN where a map is not finite."""
    unknown = (np.nan, np.nan)
    ranges = [[explanation.range or unknown for explanation in answer.explanations] for answer in answers]
    return np.array(ranges, dtype=np.float32)


def _views(answers: Sequence[Answer]) -> NDArray[Any]:
    views = []
    for index, answer in enumerate(answers):
        if answer.image is None or answer.image.view is None:
            message = f"instance {index}: no view, because there is no picture; ask for the other outputs"
            raise RequestError(400, "NoPicture", message)
        views.append(answer.image.view.rounded())
    return np.array(views, dtype=np.float32)


_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_PREDICTION = {
    "label": OutputTensor("BYTES", 2, {"type": "string"}, _labels),
    "index": OutputTensor("INT64", 2, {"type": "integer"}, _indices),
    "probability": OutputTensor("FP32", 2, _SHARE, _probabilities),
}
_EXPLANATION = {
    "heatmap": OutputTensor("FP32", 4, _SHARE, _heatmaps),
    "target": OutputTensor("INT64", 2, {"type": "integer"}, _targets),
    "range": OutputTensor("FP32", 3, {"anyOf": [{"type": "number"}, {"type": "null"}]}, _ranges),
    "view": OutputTensor("FP32", 2, {"type": "number"}, _views),
}
OUTPUTS: Mapping[str, OutputTensor] = MappingProxyType({**_PREDICTION, **_EXPLANATION})
PREDICTION_OUTPUTS = tuple(_PREDICTION)
EXPLANATION_OUTPUTS = tuple(OUTPUTS)
