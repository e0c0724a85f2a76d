"""Writes a model as an ONNX graph, which ONNX Runtime and OpenVINO read: any number of pictures of one size."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from camserve.capture.runtimes.outputs import AT, SCORES, Outputs, find_moving_axes

GRAPH = "camserve-runtime.onnx"
"""The graph's name in an archive."""

BEHIND = "camserve-runtime-behind.onnx"
"""The name of the graph of what is behind the layers; where it lies beside `GRAPH`, that ends at them."""

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


def split_graph(graph: bytes, names: Collection[str]) -> tuple[bytes, bytes] | None:
    """Split a graph behind some of its outputs: an explanation there needs what is before, and torch computes what is behind.

    Args:
        graph: what `export_graph` gave.
        names: of outputs, without `AT`; at least one.

    Returns:
        The graph that gives these outputs, and the one that goes on from them to the scores and the other outputs; None where
        more than these would go from one to the other.
    """
    import onnx  # noqa: PLC0415 an extra, and it takes time

    model = onnx.load_model_from_string(graph)
    described = {each.name: each for each in model.graph.output}
    split = [AT + name for name in names]
    before = _select_nodes(model.graph, split)
    made = {output for node in before for output in node.output} & _find_moving(model.graph)  # the rest may be in both
    outputs = [name for name in described if name in made]
    others = [name for name in described if name not in made]
    behind = _select_nodes(model.graph, others, made)
    asked = dict.fromkeys(name for node in behind for name in node.input)
    crossing = [name for name in asked if name in made]
    nested = any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute)
    if nested or model.functions or SCORES in outputs or PICTURES in asked or not set(crossing) <= set(outputs):
        return None  # a nested graph may need tensors that no node names
    first = _write_part(model, before, list(model.graph.input), [described[name] for name in outputs])
    return first, _write_part(model, behind, [described[name] for name in crossing], [described[name] for name in others])


def _find_moving(graph: Any) -> set[str]:
    """Find the tensors that depend on the pictures."""
    found = {PICTURES}
    for node in graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _select_nodes(graph: Any, outputs: Collection[str], given: Collection[str] = ()) -> list[Any]:
    """Select the nodes that some tensors need, in the order in which they run, without those that make what is `given`."""
    needed, selected = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and not set(node.output) <= set(given):
            needed.update(node.input)
            selected.append(node)
    return selected[::-1]


def _write_part(model: Any, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
    import onnx  # noqa: PLC0415 an extra, and it takes time

    needed = {name for node in nodes for name in node.input}
    weights = [each for each in model.graph.initializer if each.name in needed]
    graph = onnx.helper.make_graph(nodes, "part", inputs, outputs, weights)
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    data: bytes = made.SerializeToString()
    return data


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
