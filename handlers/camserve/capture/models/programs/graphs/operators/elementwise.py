"""Operators that compute each value by itself, or from those at the same place."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camserve.capture.models.programs.graphs.operators.node import GraphError, Node, Operation, expand_shapes

TYPES = MappingProxyType(
    {
        1: torch.float32,
        2: torch.uint8,
        3: torch.int8,
        5: torch.int16,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float32,  # half precision is computed in full
        11: torch.float64,
        16: torch.float32,
    }
)
"""torch's types by ONNX's numbers."""


def one(function: Callable[[Tensor], Tensor]) -> Operation:
    """Make an operator of a function of one tensor."""
    return lambda _node, x: function(x)


def two(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """Make an operator of a function of two tensors, which are expanded to one shape."""

    def run(_node: Node, a: Tensor, b: Tensor) -> Tensor:
        expand_shapes(a.shape, b.shape)
        return function(a, b)

    return run


def many(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """Make an operator that joins any number of tensors, two by two."""
    pair = two(function)
    return lambda node, *tensors: reduce(lambda a, b: pair(node, a, b), tensors)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b).to(a.dtype)


def _mean(node: Node, *tensors: Tensor) -> Tensor:
    total: Any = many(torch.add)(node, *tensors)
    return total / len(tensors)  # type: ignore[no-any-return]


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = node.get("min") if low is None else low.item()
    most = node.get("max") if high is None else high.item()
    return x if least is None and most is None else x.clamp(least, most)


def _cast(node: Node, x: Tensor) -> Tensor:
    kind = TYPES.get(node.get("to", 1))
    if kind is None:
        raise GraphError(f"Cast to ONNX's type {node.get('to')}")
    if x.is_floating_point() and kind.is_floating_point:
        return x  # one precision all over, so that gradients pass
    return x.to(kind)


def _softmax(node: Node, x: Tensor) -> Tensor:
    return _along(node, x, torch.softmax)


def _log_softmax(node: Node, x: Tensor) -> Tensor:
    return _along(node, x, torch.log_softmax)


def _along(node: Node, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a function along an axis; until version 12 all axes from that one on are one."""
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    if axis == x.ndim - 1:
        return function(x, -1)
    return function(x.flatten(axis), -1).reshape(x.shape)


def _drop_nothing(node: Node, x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    if (training is not None and bool(training)) or len([name for name in node.outputs if name]) > 1:
        raise GraphError("Dropout in training mode; export the model in evaluation mode, model.eval()")
    return x


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    made: Tensor = node.get("alpha", 0.2) * x + node.get("beta", 0.5)
    return made.clamp(0, 1)


def _gelu(node: Node, x: Tensor) -> Tensor:
    approximate = node.get("approximate", b"none")
    return functional.gelu(x, approximate="tanh" if approximate == b"tanh" else "none")


def _quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def _prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    expand_shapes(x.shape, slope.shape)
    return torch.where(x >= 0, x, x * slope)


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    made: Tensor = gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))
    return made


def _choose(_node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    expand_shapes(condition.shape, a.shape, b.shape)
    return torch.where(condition.bool().to(a.device), a, b)


ELEMENTWISE: MappingProxyType[str, Operation] = MappingProxyType(
    {
        "Abs": one(torch.abs),
        "Add": two(torch.add),
        "And": two(torch.logical_and),
        "Cast": _cast,
        "CastLike": lambda _node, x, other: x if x.is_floating_point() and other.is_floating_point() else x.to(other.dtype),
        "Ceil": one(torch.ceil),
        "Celu": lambda node, x: functional.celu(x, node.get("alpha", 1.0)),
        "Clip": _clip,
        "Cos": one(torch.cos),
        "Div": two(_divide),
        "Dropout": _drop_nothing,
        "Elu": lambda node, x: functional.elu(x, node.get("alpha", 1.0)),
        "Equal": two(torch.eq),
        "Erf": one(torch.erf),
        "Exp": one(torch.exp),
        "Floor": one(torch.floor),
        "Gelu": _gelu,
        "Greater": two(torch.gt),
        "GreaterOrEqual": two(torch.ge),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": one(functional.hardswish),
        "Identity": one(lambda x: x),
        "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.get("alpha", 0.01)),
        "Less": two(torch.lt),
        "LessOrEqual": two(torch.le),
        "Log": one(torch.log),
        "LogSoftmax": _log_softmax,
        "Max": many(torch.maximum),
        "Mean": _mean,
        "Min": many(torch.minimum),
        "Mish": one(functional.mish),
        "Mod": lambda node, a, b: two(torch.fmod if node.get("fmod", 0) else torch.remainder)(node, a, b),
        "Mul": two(torch.mul),
        "Neg": one(torch.neg),
        "Not": one(torch.logical_not),
        "Or": two(torch.logical_or),
        "PRelu": _prelu,
        "Pow": two(_power),
        "QuickGelu": _quick_gelu,
        "Reciprocal": one(torch.reciprocal),
        "Relu": one(torch.relu),
        "Round": one(torch.round),
        "Selu": _selu,
        "Sigmoid": one(torch.sigmoid),
        "Sign": one(torch.sign),
        "Sin": one(torch.sin),
        "Softmax": _softmax,
        "Softplus": one(functional.softplus),
        "Softsign": one(functional.softsign),
        "Sqrt": one(torch.sqrt),
        "Sub": two(torch.sub),
        "Sum": many(torch.add),
        "Swish": _swish,
        "Tanh": one(torch.tanh),
        "ThresholdedRelu": lambda node, x: torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x)),
        "Where": _choose,
    }
)
