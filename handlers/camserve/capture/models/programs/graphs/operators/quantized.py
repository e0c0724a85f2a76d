"""Quantized operators: whole numbers are kept as floats, and gradients go straight through the rounding.

What is rounded has no gradient of its own. That of what it rounds is taken, within the range that it keeps, as in training with
quantization (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from camserve.capture.models.programs.graphs.operators.layers import convolve, multiply
from camserve.capture.models.programs.graphs.operators.node import GraphError, Node, Operation, Result

RANGES = MappingProxyType(
    {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767), torch.int32: (-(2**31), 2**31 - 1)}
)
TYPES = MappingProxyType({2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32})
"""torch's types by ONNX's numbers."""

DYNAMIC = frozenset({"DynamicQuantizeLinear"})
"""Operators that round by the range of all that they are given, so that pictures of one batch would change each other."""


def _spread(node: Node, x: Tensor, values: Tensor) -> Tensor:
    """Return scales or zero points in a shape that goes with `x`: one for all, or one for each place of an axis."""
    if node.get("block_size", 0):
        raise GraphError(f"{node.kind} in blocks")
    if values.numel() == 1:
        return values.reshape(())
    axis = node.get("axis", 1) % x.ndim
    return values.reshape([-1 if place == axis else 1 for place in range(x.ndim)])


def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Round to whole numbers within the range of the type of `zero`."""
    kind = zero.dtype if zero is not None and zero.dtype in RANGES else TYPES.get(node.get("output_dtype", 2), torch.uint8)
    low, high = RANGES[kind]
    offset = torch.zeros(()) if zero is None else _spread(node, x, zero).to(x)
    exact = x / _spread(node, x, scale)
    rounded = exact + (exact.round() - exact).detach() + offset
    return rounded.clamp(low, high)


def dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return what whole numbers stand for."""
    x = x.to(scale)
    factor = _spread(node, x, scale)
    if zero is None:
        return x * factor
    return torch.addcmul(-_spread(node, x, zero).to(x) * factor, x, factor)  # a difference would look like a part of a distance


def _quantize_by_range(node: Node, x: Tensor) -> Result:
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255).to(torch.uint8) if float(scale) else torch.zeros((), dtype=torch.uint8)
    return quantize(node, x, scale, zero), scale, zero


def _shift(x: Tensor, zero: Tensor | None, rows: bool = False) -> Tensor:
    x = x if x.is_floating_point() else x.float()
    if zero is None:
        return x
    offset = zero.to(x)
    return x - (offset.reshape(-1, 1) if rows and offset.numel() > 1 else offset)


def _multiply_whole(node: Node, a: Tensor, b: Tensor, zero_a: Tensor | None = None, zero_b: Tensor | None = None) -> Tensor:
    first = _shift(a, zero_a, rows=True)
    return multiply(node, first, _shift(b, zero_b).to(first))


def _convolve_whole(node: Node, x: Tensor, w: Tensor, zero_x: Tensor | None = None, zero_w: Tensor | None = None) -> Tensor:
    weight = w if w.is_floating_point() else w.float()
    if zero_w is not None:
        weight = weight - zero_w.float().reshape([-1 if zero_w.numel() > 1 else 1, *[1] * (w.ndim - 1)])
    given = _shift(x, zero_x)
    return convolve(node, given, weight.to(given))


QUANTIZED: MappingProxyType[str, Operation] = MappingProxyType(
    {
        "ConvInteger": _convolve_whole,
        "DequantizeLinear": dequantize,
        "DynamicQuantizeLinear": _quantize_by_range,
        "MatMulInteger": _multiply_whole,
        "QuantizeLinear": quantize,
    }
)
