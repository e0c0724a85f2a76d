"""V2's output tensors: their names and types, and how answers fill them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from camserve.core.errors import RequestError
from camserve.core.messages import Answer, Explanation
from camserve.core.messages.checks import VERDICTS, Check


@dataclass(frozen=True)
class OutputTensor:
    """One output.

    Attributes:
        datatype: V2's name of its type.
        rank: how many dimensions it has; the first counts the request's images.
        value: JSON Schema of one element.
        collect: makes the array of all answers: int64, float32, or objects that are str.
        needs: the option that must be given; empty: none.
    """

    datatype: Literal["BYTES", "INT64", "FP32"]
    rank: int
    value: Mapping[str, Any]
    collect: Callable[[Sequence[Answer]], NDArray[Any]]
    needs: str = ""


def name_direction(explanation: Explanation) -> str:
    """Returns whether a heatmap is of what `raises` or `lowers` its target's value."""
    return "lowers" if explanation.lowers else "raises"


def describe_contours(explanation: Explanation) -> list[dict[str, Any]] | None:
    """Describe contours as JSON has them, each a level and a GeoJSON geometry; None where there is no map."""
    if explanation.contours is None:
        return None
    return [{"level": each.level, "type": "MultiPolygon", "coordinates": each.polygons} for each in explanation.contours]


def _fill(rows: Sequence[Sequence[Any]], empty: Any, dtype: Any) -> NDArray[Any]:
    """Makes an array of rows, those with fewer elements filled up with `empty`: not all have as many labels above a threshold."""
    longest = max(map(len, rows))
    return np.array([[*row, *[empty] * (longest - len(row))] for row in rows], dtype=dtype)


def _labels(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[score.label for score in answer.classes] for answer in answers], "", object)


def _indices(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[score.index for score in answer.classes] for answer in answers], -1, np.int64)


def _probabilities(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[score.probability for score in answer.classes] for answer in answers], np.nan, np.float32)


def _heatmaps(answers: Sequence[Answer]) -> NDArray[Any]:
    first = _grid_of(answers[0])
    for index, answer in enumerate(answers):
        if _grid_of(answer) != first:
            height, width = _grid_of(answer)
            message = (
                f"instance {index}: its heatmap is {height} x {width}, the first one's {first[0]} x {first[1]}; "
                "one V2 request takes images whose heatmaps have one shape: ask in V1, or without the output heatmap"
            )
            raise RequestError(400, "InvalidImage", message)
    empty = np.zeros(first, np.float32)
    maps = _fill([[explanation.heatmap for explanation in answer.explanations] for answer in answers], empty, np.float32)
    return maps.reshape(*maps.shape[:2], *first)


def _grid_of(answer: Answer) -> tuple[int, ...]:
    return answer.explanations[0].heatmap.shape if answer.explanations else answer.grid


def _targets(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[explanation.target for explanation in answer.explanations] for answer in answers], -1, np.int64)


def _directions(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[name_direction(explanation) for explanation in answer.explanations] for answer in answers], "", object)


def _verdicts(answers: Sequence[Answer]) -> NDArray[Any]:
    """Empty where there is no map to check."""
    return _fill([[check.verdict if check else "" for check in _checks(answer)] for answer in answers], "", object)


def _supports(answers: Sequence[Answer]) -> NDArray[Any]:
    return _fill([[check.support if check else np.nan for check in _checks(answer)] for answer in answers], np.nan, np.float32)


def _checks(answer: Answer) -> list[Check | None]:
    return [explanation.check for explanation in answer.explanations]


def _of_inside(member: str, empty: Any, dtype: Any) -> Callable[[Sequence[Answer]], NDArray[Any]]:
    def collect(answers: Sequence[Answer]) -> NDArray[Any]:
        rows = [[each.inside and getattr(each.inside, member) for each in answer.explanations] for answer in answers]
        return _fill([[empty if value is None else value for value in row] for row in rows], empty, dtype)

    return collect


def _contours(answers: Sequence[Answer]) -> NDArray[Any]:
    """Empty where there is no map."""
    described = [[describe_contours(each) for each in answer.explanations] for answer in answers]
    return _fill(
        [["" if each is None else json.dumps(each, separators=(",", ":")) for each in row] for row in described], "", object
    )


def _ranges(answers: Sequence[Answer]) -> NDArray[Any]:
    """NaN where a map is not finite."""
    unknown = (np.nan, np.nan)
    ranges = [[explanation.range or unknown for explanation in answer.explanations] for answer in answers]
    filled = _fill(ranges, unknown, np.float32)
    return filled.reshape(*filled.shape[:2], 2)


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
_DIRECTION = {"direction": OutputTensor("BYTES", 2, {"type": "string", "enum": ["raises", "lowers"]}, _directions)}
_CHECK = {
    "verdict": OutputTensor("BYTES", 2, {"type": "string", "enum": [*VERDICTS, ""]}, _verdicts, "check"),
    "support": OutputTensor("FP32", 2, {"anyOf": [{"type": "number"}, {"type": "null"}]}, _supports, "check"),
}
_KNOWN_SHARE = {"anyOf": [_SHARE, {"type": "null"}]}
_PLACES = {
    "inside": OutputTensor("FP32", 2, _KNOWN_SHARE, _of_inside("share", np.nan, np.float32), "inside"),
    "area": OutputTensor("FP32", 2, _KNOWN_SHARE, _of_inside("area", np.nan, np.float32), "inside"),
    "peak": OutputTensor("INT64", 2, {"type": "integer", "enum": [1, 0, -1]}, _of_inside("peak", -1, np.int64), "inside"),
    "contours": OutputTensor("BYTES", 2, {"type": "string"}, _contours, "contours"),
}
OUTPUTS: Mapping[str, OutputTensor] = MappingProxyType({**_PREDICTION, **_EXPLANATION, **_DIRECTION, **_CHECK, **_PLACES})
PREDICTION_OUTPUTS = tuple(_PREDICTION)
EXPLANATION_OUTPUTS = (*_PREDICTION, *_EXPLANATION)


def list_outputs(*, explain: bool, values: bool) -> tuple[str, ...]:
    """Lists the outputs that a request may name; `values`: of a model whose scores are values: heatmaps have a direction."""
    if not explain:
        return PREDICTION_OUTPUTS
    return (*EXPLANATION_OUTPUTS, *(_DIRECTION if values else ()), *_CHECK, *_PLACES)
