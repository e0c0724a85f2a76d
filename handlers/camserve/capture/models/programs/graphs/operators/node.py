"""A node of a graph as operators see it, and how large what they make may become."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_VALUES = 2**28
"""Most values of one tensor, for each picture: a few bytes of a graph can ask for any number of them."""

_running = threading.local()

Result = Tensor | tuple[Tensor, ...]

Operation = Callable[..., Result]
"""Takes a `Node` and its inputs, None for one that is left out, and computes its output, or its outputs."""


class GraphError(ValueError):
    """What of a graph cannot be computed here, in words."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        kind: the operator's name.
        opset: in which version of ONNX's operators.
        inputs: names of tensors; "" for one that is left out.
        outputs: names of tensors; "" for one that nobody needs.
        attributes: what else it was given: numbers, strings, tensors, and lists of them.
    """

    kind: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


@contextmanager
def allow_for(pictures: int) -> Iterator[None]:
    """Context manager in which tensors of so many pictures are made, in this thread."""
    _running.pictures = max(1, pictures)
    try:
        yield
    finally:
        _running.pictures = 1


def check_size(shape: Iterable[int]) -> list[int]:
    """Return the shape of a tensor that is to be made.

    Raises:
        GraphError: it would be larger than any picture needs.
    """
    sides = [int(side) for side in shape]
    if any(side < 0 for side in sides) or math.prod(sides) > MAX_VALUES * getattr(_running, "pictures", 1):
        raise GraphError(f"a tensor of the shape {sides[:8]}; the most is {MAX_VALUES} values for a picture")
    return sides


def expand_shapes(*shapes: Iterable[int]) -> list[int]:
    """Return the shape to which tensors of these shapes are expanded.

    Raises:
        GraphError: it would be too large.
        RuntimeError: they do not go together.
    """
    return check_size(torch.broadcast_shapes(*map(tuple, shapes)))  # type: ignore[no-untyped-call]


def list_whole(values: Tensor) -> list[int]:
    """Return a tensor of whole numbers as a list."""
    return [int(value) for value in values.flatten().tolist()]


def take_axes(node: Node, given: Tensor | None) -> list[int] | None:
    """Return the axes that a node names: an attribute in older versions, an input in newer ones; None: it names none."""
    if given is not None:
        return list_whole(given)
    axes = node.get("axes")
    return None if axes is None else [int(axis) for axis in axes]
