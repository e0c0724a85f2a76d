"""Writes a model as an ONNX graph, which ONNX Runtime and OpenVINO read: any number of pictures of one size."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from camserve.capture.runtimes.outputs import AT, SCORES, Outputs, find_moving_axes

GRAPH = "camserve-runtime.onnx"
"""The graph's name in an archive."""

PICTURES = "pictures"
"""The name of the graph's only input."""

OPSET = 17
"""The first with layer normalisation in one piece; every ONNX Runtime since 1.12 knows it."""

BY_TRACING: Any = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
"""Older releases of torch know no other way."""


def export_graph(module: Outputs, names: Sequence[str], pictures: Tensor) -> bytes:
    """Write the graph of a module for pictures of this size `[N, C, H, W]`, N at least 2.

    Args:
        names: of its outputs behind the scores; in the graph they begin with `AT`.

    torch's exporter by tracing is used: it takes a fraction of the time of the newer one, and follows hooks.

    Raises:
        RuntimeError: the package `onnx` is not installed, or the model has an operation that the exporter cannot write.
    """
    if importlib.util.find_spec("onnx") is None:
        raise RuntimeError("writing its graph takes the package onnx, which is not installed (pip install onnx)")
    outputs = [SCORES, *(AT + name for name in names)]
    axes = dict(zip(outputs, find_moving_axes(module, pictures), strict=True))
    file = io.BytesIO()
    with torch.no_grad(), _exporting():
        torch.onnx.export(
            module,
            (pictures[:2],),
            file,  # type: ignore[arg-type]
            input_names=[PICTURES],
            output_names=outputs,
            dynamic_axes={PICTURES: {0: "n"}, **{name: each for name, each in axes.items() if each}},
            opset_version=OPSET,
            **BY_TRACING,
        )
    return file.getvalue()


@contextmanager
def _exporting() -> Iterator[None]:
    """Context manager that keeps attention in operations that the exporter knows, and the exporter quiet."""
    fast = torch.backends.mha.get_fastpath_enabled()
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.getLogger("torch.onnx").setLevel(level)
