"""Answers in the Open Inference Protocol V2, with its binary tensor data extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.errors import RequestError
from camserve.core.messages import Answer, ModelInfo, Output, Request
from camserve.protocol.float32 import shorten
from camserve.protocol.kserve.outputs import OUTPUTS, list_outputs


def write_v2(request: Request, answers: Sequence[Answer], model: ModelInfo, values: bool = False) -> tuple[dict[str, Any], bytes]:
    """Writes the JSON part and the binary part of a V2 answer.

    Outputs: `label` BYTES, `index` INT64, `probability` FP32, each `[n, k]`; for explanations also `heatmap` FP32
    `[n, t, h, w]`, `target` INT64 `[n, t]`, `range` FP32 `[n, t, 2]` (null in JSON and NaN in binary where the map is not
    finite) and `view` FP32 `[n, 4]` (left out where the input is a tensor, so that there is no picture to view); where checks
    were asked for, `verdict` BYTES and `support` FP32, each `[n, t]` (empty and null where there is no map); with an area
    `inside` and `area` FP32 and `peak` INT64 (1, 0, or -1 where there is no map), each `[n, t]`; with levels `contours` BYTES
    `[n, t]`, each the JSON of the plain answer's. Where some
    pictures have fewer labels above the threshold than others, the rest is index and target -1, empty text, NaN and zeros.

    Args:
        values: the scores are values: there is also `direction` BYTES `[n, t]`.

    Raises:
        RequestError: 400 `InvalidImage`, the images' heatmaps differ in shape, so they make no tensor; 400 `NoPicture`,
            `view` is asked for by name and there is none.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for asked in request.outputs or _choose_outputs(request, answers, values):
        needs = OUTPUTS[asked.name].needs
        if needs and not all(needs in answer.asked for answer in answers):
            raise RequestError(400, "InvalidOption", f"the output {asked.name} needs the parameter {needs}")
        array = OUTPUTS[asked.name].collect(answers)
        output: dict[str, Any] = {"name": asked.name, "datatype": OUTPUTS[asked.name].datatype, "shape": list(array.shape)}
        if request.binary if asked.binary is None else asked.binary:
            binary.append(_encode(array))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = _flatten(array)
        outputs.append(output)
    head = {"id": request.id} if request.id is not None else {}
    return {**head, "model_name": model.name, "model_version": model.version, "outputs": outputs}, b"".join(binary)


def _choose_outputs(request: Request, answers: Sequence[Answer], values: bool) -> list[Output]:
    names = list_outputs(explain=request.explain, values=values)
    viewed = all(answer.image is not None and answer.image.view is not None for answer in answers)
    absent = set() if viewed else {"view"}
    asked = frozenset.intersection(*(answer.asked for answer in answers))
    return [Output(name) for name in names if name not in absent and OUTPUTS[name].needs in {"", *asked}]


def _flatten(array: NDArray[Any]) -> list[Any]:
    """Makes a flat list in row-major order; what is not finite becomes None."""
    if array.dtype.kind != "f":
        flat: list[Any] = array.ravel().tolist()
        return flat
    finite = np.isfinite(array).ravel()
    values = shorten(np.where(np.isfinite(array), array, np.float32(0)).ravel())
    return values if finite.all() else [value if good else None for value, good in zip(values, finite, strict=True)]


def _encode(array: NDArray[Any]) -> bytes:
    """Writes little-endian values in row-major order; each string is its length in UTF-8, 4 bytes, and its bytes."""
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    texts = [str(value).encode("utf-8", "replace") for value in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
