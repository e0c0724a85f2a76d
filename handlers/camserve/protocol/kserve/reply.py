"""Answers in KServe's V1 and in the Open Inference Protocol V2, with its binary tensor data extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.errors import RequestError
from camserve.core.messages import Answer, ModelInfo, Output, Request
from camserve.protocol.float32 import shortest
from camserve.protocol.kserve.request import EXPLANATION_OUTPUTS, PREDICTION_OUTPUTS

_DATATYPES = {"O": "BYTES", "i": "INT64", "f": "FP32"}


@dataclass(frozen=True)
class Tensor:
    """One V2 output: int64, float32 or an object array of str, in row-major order."""

    name: str
    array: NDArray[Any]

    def described(self) -> dict[str, Any]:
        """Its name, datatype and shape."""
        return {"name": self.name, "datatype": _DATATYPES[self.array.dtype.kind], "shape": list(self.array.shape)}

    def as_json(self) -> list[Any]:
        """Flat values; what is not finite is null."""
        if self.array.dtype.kind != "f":
            flat: list[Any] = self.array.ravel().tolist()
            return flat
        finite = np.isfinite(self.array).ravel()
        values = shortest(np.where(np.isfinite(self.array), self.array, np.float32(0)).ravel())
        return values if finite.all() else [value if good else None for value, good in zip(values, finite, strict=True)]

    def as_binary(self) -> bytes:
        """Little-endian values; each string is its length in UTF-8, 4 bytes, and its bytes."""
        if self.array.dtype.kind != "O":
            return self.array.astype(self.array.dtype.newbyteorder("<")).tobytes()
        encoded = [str(value).encode("utf-8", "replace") for value in self.array.ravel()]
        return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)


def v2_body(request: Request, answers: Sequence[Answer], model: ModelInfo) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the binary part of a V2 answer.

    Outputs: `label` BYTES, `index` INT64, `probability` FP32, each `[n, k]`; for explanations also `heatmap` FP32
    `[n, t, h, w]`, `target` INT64 `[n, t]`, `range` FP32 `[n, t, 2]` (null in JSON and NaN in binary where the map is not
    finite) and `view` FP32 `[n, 4]` (left out where the input is a tensor, so that there is no picture to view).

    Raises:
        RequestError: 400 `InvalidImage`, the images' heatmaps differ in shape, so they make no tensor; 400 `NoPicture`,
            `view` is asked for by name and there is none.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for asked in request.outputs or _all_outputs(request, answers):
        tensor = Tensor(asked.name, _OUTPUTS[asked.name](answers))
        described = tensor.described()
        if request.binary if asked.binary is None else asked.binary:
            binary.append(tensor.as_binary())
            described["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            described["data"] = tensor.as_json()
        outputs.append(described)
    head = {"id": request.id} if request.id is not None else {}
    return {**head, "model_name": model.name, "model_version": model.version, "outputs": outputs}, b"".join(binary)


def _all_outputs(request: Request, answers: Sequence[Answer]) -> list[Output]:
    names = EXPLANATION_OUTPUTS if request.explain else PREDICTION_OUTPUTS
    viewed = all(answer.image is not None and answer.image.view is not None for answer in answers)
    return [Output(name) for name in names if name != "view" or viewed]


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


_OUTPUTS: Mapping[str, Callable[[Sequence[Answer]], NDArray[Any]]] = MappingProxyType(
    {
        "label": _labels,
        "index": _indices,
        "probability": _probabilities,
        "heatmap": _heatmaps,
        "target": _targets,
        "range": _ranges,
        "view": _views,
    }
)
