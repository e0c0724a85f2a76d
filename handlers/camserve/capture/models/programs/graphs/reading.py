"""What a graph's file says, as values of this package: what it takes, its operations and its constants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camserve.capture.models.programs.graphs.operators.node import Node, Operation, check_size
from camserve.capture.models.programs.graphs.operators.table import find_operation
from camserve.core.errors import ConfigError
from camserve.core.text import join_names

FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of the floating types, which are all computed in float32 here."""

WHOLE = (2, 3, 5, 6, 7, 9)

INPUTS = {1: "float32", 10: "float16", 11: "float64"}
"""The types of pictures that a graph may take."""

UNKNOWN = (
    "{} has operators that cannot be differentiated here: {}. A graph of ONNX's own operators, as torch.onnx.export writes it, "
    "can, where no runtime has optimised it; or package the PyTorch model that it was written from, with --runtime "
    "onnxruntime, which runs that in ONNX Runtime too"
)


@dataclass(frozen=True)
class Input:
    """What a graph takes.

    Attributes:
        name: of the tensor.
        kind: ONNX's number of its type.
        shape: of the pictures; None: any.
        last: whether channels are the last axis.
    """

    name: str
    kind: int
    shape: tuple[int | None, ...]
    last: bool = False


def read_input(model: Any, path: Path) -> Input:
    """Return what a graph takes beside its weights, which old graphs list among its inputs.

    Raises:
        ConfigError: not pictures alone.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = join_names([each.name for each in inputs]) or "none"
        raise ConfigError(f"{path.name} takes {len(inputs)} inputs ({names}), and camserve gives it pictures alone")
    kind = inputs[0].type.tensor_type.elem_type
    sides = inputs[0].type.tensor_type.shape.dim
    shape = tuple(side.dim_value if side.dim_value > 0 else None for side in sides)
    if kind not in INPUTS:
        raise ConfigError(
            f"{path.name} takes pictures of ONNX's type {kind}; accepted are {join_names(INPUTS.values())}, as "
            "torch.onnx.export writes it: put a Cast before it"
        )
    if len(shape) not in (0, 4):
        raise ConfigError(f"{path.name} takes {list(shape)}, and pictures are [N, channels, height, width]")
    last = len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    return Input(inputs[0].name, kind, shape, last)


def read_nodes(model: Any, path: Path) -> list[tuple[Node, Operation]]:
    """Return a graph's operations.

    Raises:
        ConfigError: some are not known here.
    """
    import onnx  # noqa: PLC0415 an extra, and it takes time

    opsets = {each.domain: each.version for each in model.opset_import}
    found, unknown = [], {}
    for each in model.graph.node:
        function = find_operation(each.domain, each.op_type)
        if function is None:
            unknown[f"{each.domain}.{each.op_type}".lstrip(".")] = True
            continue
        attributes = {}
        for attribute in each.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            attributes[attribute.name] = to_tensor(value) if isinstance(value, onnx.TensorProto) else value
        opset = opsets.get("", opsets.get("ai.onnx", 1))
        found.append((Node(each.op_type, opset, tuple(each.input), tuple(each.output), attributes), function))
    if unknown:
        raise ConfigError(UNKNOWN.format(path.name, join_names(unknown)))
    return found


def keep_needed(nodes: Sequence[tuple[Node, Operation]], outputs: Iterable[str]) -> list[tuple[Node, Operation]]:
    """Return the operations that outputs need, in order."""
    wanted, kept = set(outputs), []
    for node, function in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
            kept.append((node, function))
    return kept[::-1]


def to_tensor(tensor: Any) -> Tensor | None:
    """Return a constant; None: of a type that is not known here.

    Raises:
        ConfigError: it holds another number of values than it says.
    """
    import onnx  # noqa: PLC0415 an extra, and it takes time

    if tensor.data_type not in (*FLOATS, *WHOLE):
        return None
    try:
        check_size(tensor.dims)
        array = onnx.numpy_helper.to_array(tensor)
        array = array.astype(np.float32) if tensor.data_type in FLOATS else np.array(array)
        return torch.from_numpy(np.ascontiguousarray(array)).reshape(tuple(tensor.dims))
    except Exception as error:  # numpy's own, and protobuf's
        raise ConfigError(f"the graph's constant {tensor.name!r} is damaged: {error}") from error
