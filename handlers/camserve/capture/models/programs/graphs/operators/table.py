"""All operators by their names."""

from __future__ import annotations

from types import MappingProxyType

from camserve.capture.models.programs.graphs.operators.elementwise import ELEMENTWISE
from camserve.capture.models.programs.graphs.operators.layers import LAYERS
from camserve.capture.models.programs.graphs.operators.node import Operation
from camserve.capture.models.programs.graphs.operators.quantized import QUANTIZED
from camserve.capture.models.programs.graphs.operators.reductions import REDUCTIONS
from camserve.capture.models.programs.graphs.operators.shapes import SHAPES

OPERATORS: MappingProxyType[str, Operation] = MappingProxyType({**ELEMENTWISE, **LAYERS, **QUANTIZED, **REDUCTIONS, **SHAPES})

MICROSOFT = frozenset({"DequantizeLinear", "Gelu", "QuantizeLinear", "QuickGelu"})
"""Of ONNX Runtime's own operators those that compute the same."""


def find_operation(domain: str, kind: str) -> Operation | None:
    """Return what computes an operator; None: nothing does here."""
    if domain in ("", "ai.onnx"):
        return OPERATORS.get(kind)
    return OPERATORS[kind] if domain == "com.microsoft" and kind in MICROSOFT else None
