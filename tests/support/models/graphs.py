"""ONNX graphs of the small classifiers, as files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def write_graph(model: nn.Module, path: Path, example: Tensor, *, dynamic: bool = True, opset: int = 17, **how: Any) -> Path:
    """Writes a model's graph, as torch's exporter by tracing does; `dynamic`: for any number of pictures."""
    axes = {"pictures": {0: "n"}} if dynamic else None
    named = {"input_names": ["pictures"], "output_names": ["scores"], "dynamic_axes": axes, **how}
    torch.backends.mha.set_fastpath_enabled(False)  # an operator that no exporter knows
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (example,), str(path), dynamo=False, opset_version=opset, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return path


def quantize(path: Path, into: Path, pictures: Tensor) -> Path:
    """Writes a graph that rounds to 8 bits (QDQ), calibrated with pictures `[N, 3, H, W]`."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"pictures": each[None].numpy().astype(np.float32)} for each in pictures]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantization.quantize_static(str(path), str(into), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True)
    return into


def halve(path: Path, into: Path) -> Path:
    """Writes a graph in half precision, its input too."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path)), into)
    return into
