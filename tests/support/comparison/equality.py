"""Whether two answers are the same: everything exactly, numbers within the contract's tolerances, pictures within two levels."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
from PIL import Image

from camserve.tools.archive.archive import Response

OVERLAY = "data:image/png;base64,"
PROBABLE = {"predictions", "probability"}
"""Keys, and V2's outputs by name, that hold probabilities."""


def assert_same(one: Response, other: Response) -> None:
    """Status, type, headers and content agree."""
    assert (one.status, one.content_type, list(one.headers)) == (other.status, other.content_type, list(other.headers))
    for name, value in one.headers.items():
        if name.startswith("x-explain"):
            assert_close(json.loads(value), json.loads(other.headers[name]))
        else:
            assert value == other.headers[name]
    if one.content_type == "application/json":
        assert_close(json.loads(one.body), json.loads(other.body))
    elif one.content_type == "application/octet-stream":
        assert_close(_tensors(one), _tensors(other))
    elif one.content_type == "application/x-npy":
        np.testing.assert_allclose(np.load(io.BytesIO(one.body)), np.load(io.BytesIO(other.body)), atol=1e-4)
    elif one.content_type.startswith("image/"):
        _alike(one.body, other.body)
    else:
        assert one.body == other.body


def assert_close(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    """Equal but for float noise: below 1e-5 in probabilities, below 1e-4 elsewhere."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_close(one[name], other[name], 1e-5 if PROBABLE & {name, one.get("name")} else tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right, tolerance)
    elif isinstance(one, float):
        assert isinstance(other, float | int), (one, other)
        assert math.isclose(one, other, rel_tol=0, abs_tol=tolerance) or (math.isnan(one) and math.isnan(other)), (one, other)
    elif isinstance(one, str) and one.startswith(OVERLAY):
        _alike(*(base64.b64decode(each.removeprefix(OVERLAY)) for each in (one, other)))
    else:
        assert one == other


def _alike(one: bytes, other: bytes) -> None:
    left, right = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=np.int16) for each in (one, other))
    assert left.shape == right.shape
    assert np.abs(left - right).max() <= 2


def _tensors(response: Response) -> Any:
    """An answer in KServe's binary extension, read back."""
    length = int(response.headers["inference-header-content-length"])
    answer = json.loads(response.body[:length])
    tail = response.body[length:]
    for output in answer["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            kinds: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
            kind = kinds.get(output["datatype"])
            output["data"] = tail[:size] if kind is None else np.frombuffer(tail[:size], kind).tolist()
            tail = tail[size:]
    assert not tail
    return answer
