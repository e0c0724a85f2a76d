"""Quantized layers, which have no gradients of their own: their weights as floats, and gradients straight through them.

What a dynamically quantized linear layer computes is `W x + b`, W of 8 bits, but for the rounding of `x`. Its gradient is
taken to be W, as in training with quantization (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DYNAMIC = ("torch.ao.nn.quantized.dynamic.", "torch.ao.nn.intrinsic.quantized.dynamic.")
"""Where torch has the modules that take floats, and give floats."""


def list_quantized_weights(module: nn.Module) -> Iterable[Tensor]:
    """List the quantized weights of linear layers and convolutions, in order, of an eager or a TorchScript module."""
    for part in module.modules():
        packed = getattr(part, "_packed_params", None)
        if isinstance(packed, torch.ScriptObject):
            kind = packed._type().name()  # type: ignore[attr-defined]
            unpack = {"LinearPackedParamsBase": "linear_unpack", "Conv2dPackedParamsBase": "conv2d_unpack"}.get(kind)
            if unpack is not None:
                weight: Tensor = getattr(torch.ops.quantized, unpack)(packed)[0]
                yield weight


def dequantize(tensor: Tensor) -> Tensor:
    """Return a tensor's values as float32 if it is quantized, else the tensor."""
    return tensor.dequantize() if tensor.is_quantized else tensor


def quantize_like(values: Tensor, output: Tensor) -> Tensor:
    """Return a copy of the values in another tensor's type; quantized as that is, which clips them to its range."""
    if not output.is_quantized:
        return values.to(output, copy=True)
    scale, zero = output.q_scale(), output.q_zero_point()
    return torch.quantize_per_tensor(values.float(), scale, zero, output.dtype)


def find_dynamic_layers(model: nn.Module) -> list[nn.Module]:
    """Find the dynamically quantized linear layers of an eager model."""
    return [
        part for part in model.modules() if f"{type(part).__module__}.".startswith(DYNAMIC) and hasattr(part, "_packed_params")
    ]


@contextmanager
def let_gradients_through(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Context manager in which dynamically quantized linear layers have gradients; what they compute stays the same."""
    handles = [layer.register_forward_hook(_attach) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook that gives the layer's output a gradient, where its input has one."""
    if not (torch.is_grad_enabled() and inputs[0].requires_grad):
        return output
    attached: Tensor = _StraightThrough.apply(inputs[0], output, layer)  # type: ignore[no-untyped-call]
    return attached


class _StraightThrough(torch.autograd.Function):
    """Gives what the layer has computed; the gradient is that of its weights as floats, and of its ReLU where it has one."""

    @staticmethod
    def forward(ctx: Any, _values: Tensor, output: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(output)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        (output,) = ctx.saved_tensors
        if type(ctx.layer).__name__ == "LinearReLU":
            gradient = gradient * (output > 0)
        return gradient @ dequantize(ctx.layer.weight()).to(gradient.dtype), None, None
