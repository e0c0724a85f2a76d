"""Operators that reduce axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from camserve.capture.models.programs.graphs.operators.node import GraphError, Node, Operation, take_axes


def reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operation:
    """Make an operator of a function that reduces axes."""

    def run(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        found = take_axes(node, axes)
        if not found:
            if node.get("noop_with_empty_axes", 0):
                return x
            found = list(range(x.ndim))
        return function(x, [axis % x.ndim for axis in found], bool(node.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(largest: bool) -> Operation:
    def run(node: Node, x: Tensor) -> Tensor:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            raise GraphError(f"{node.kind} of the last of equal values")
        return x.argmax(axis, keep) if largest else x.argmin(axis, keep)

    return run


REDUCTIONS: MappingProxyType[str, Operation] = MappingProxyType(
    {
        "ArgMax": _extreme(True),
        "ArgMin": _extreme(False),
        "ReduceL1": reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
        "ReduceL2": reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
        "ReduceLogSumExp": reduced(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
        "ReduceMax": reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
        "ReduceMean": reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
        "ReduceMin": reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
        "ReduceProd": reduced(_product),
        "ReduceSum": reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
        "ReduceSumSquare": reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    }
)
