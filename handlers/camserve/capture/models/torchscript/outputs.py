"""Cuts in a TorchScript program: layers' outputs, and what they are differentiated with respect to, as outputs of its own.

Like `surgery`, this rests on private parts of torch, which `surgery.check_torch` looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from camserve.capture.models.torchscript.rewriting import Graph, Node, Program, Value, destroy

SINGLE = 6
"""TorchScript's number of float32."""

FLOATING = frozenset({5, SINGLE, 7, 15})
"""Those of float16, float32, float64 and bfloat16."""

Cut = Callable[[Graph, Value], tuple[Value, list[Value]]]
"""Adds nodes behind a value: gives what the rest of the program goes on with, and further outputs of the program."""


def add_outputs(program: Program, cuts: Mapping[int, Cut]) -> Any:
    """A function of the program: the module and the pictures in; its answer and, cut by cut, the further outputs out.

    Cuts are at marks: a call's output, or an end of an operation that may pool.
    """
    graph, outputs = _cut(program, cuts)
    further = [value for each in outputs for value in each]
    for value in further:
        graph.registerOutput(value)
    if further:
        graph.makeMultiOutputIntoTuple()
    return torch._C._create_function_from_graph("explained", graph)


def add_leaves(program: Program, places: Sequence[int]) -> tuple[Any, bool]:
    """A function as of `add_outputs`, that gives for each place the value there and zeros, with respect to which the scores
    can be differentiated; and whether the program writes into one of these values later."""
    graph, outputs = _cut(program, dict.fromkeys(places, insert_leaf))
    aliases = graph.alias_db()
    written = {
        place
        for place, (kept, _) in zip(places, outputs, strict=True)
        if any(aliases.may_contain_alias(value, kept) for value in _written_after(graph, kept))
    }
    return add_outputs(program, {place: insert_leaf_in_place if place in written else insert_leaf for place in places}), bool(
        written
    )


def _written_after(graph: Graph, value: Value) -> Iterator[Value]:
    """What operations behind a value write into."""
    nodes = list(graph.nodes())
    start = next(place for place, node in enumerate(nodes) if value.unique() in [each.unique() for each in node.outputs()])
    for node in nodes[start + 1 :]:
        yield from _written(node)


def _written(node: Node) -> Iterator[Value]:
    if node.kind().endswith("_") and not node.kind().endswith("__"):
        yield next(node.inputs())
    for block in node.blocks():
        for inner in block.nodes():
            yield from _written(inner)


def _cut(program: Program, cuts: Mapping[int, Cut]) -> tuple[Graph, list[list[Value]]]:
    """A copy of the program's graph without its marks, and the further outputs of each cut."""
    graph = program.graph.copy()
    nodes = list(graph.nodes())
    further: list[list[Value]] = []
    for place, cut in cuts.items():
        mark = nodes[place]
        graph.setInsertPoint(mark)
        answer, outputs = cut(graph, next(mark.inputs()))
        mark.output().replaceAllUsesWith(answer)
        further.append(outputs)
    for place in {mark.place for mark in program.marks}.union(*program.pools):
        node = nodes[place]
        node.output().replaceAllUsesWith(next(node.inputs()))
        destroy(graph, node)
    return graph, further


def insert_leaf(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """A cut that adds zeros that require grad: the gradient with respect to them is that with respect to the value.

    So it is for any number of layers in one pass, whichever comes first. Outputs: the value, the zeros.
    """
    zeros = graph.insert("aten::zeros_like", [value])
    zeros = graph.insert("aten::requires_grad_", [zeros, graph.insertConstant(True)])
    return graph.insert("aten::add", [value, zeros]), [graph.insert("aten::detach", [value]), zeros]


def insert_leaf_in_place(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """The same for a value that the program writes into later, perhaps by another name: the zeros are added in place."""
    kept = graph.insert("aten::clone", [graph.insert("aten::detach", [value])])
    zeros = graph.insert("aten::zeros_like", [value])
    zeros = graph.insert("aten::requires_grad_", [zeros, graph.insertConstant(True)])
    return graph.insert("aten::add_", [value, zeros]), [kept, zeros]


def insert_statistics(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """A cut that looks. Outputs: shape, type, whether some value is negative, mean, mean square, mean magnitude."""
    false, true, single = graph.insertConstant(False), graph.insertConstant(True), graph.insertConstant(SINGLE)
    copy = graph.insert("aten::to", [value, single, false, true])
    negative = graph.insert("aten::any", [graph.insert("aten::lt", [copy, graph.insertConstant(0)])])
    parts = [copy, graph.insert("aten::mul", [copy, copy]), graph.insert("aten::abs", [copy])]
    means = [graph.insert("aten::mean", [part]) for part in parts]
    return value, [graph.insert("aten::size", [value]), graph.insert("prim::dtype", [value]), negative, *means]


def insert_input(graph: Graph, _value: Value) -> tuple[Value, list[Value]]:
    """A cut that puts a further input of the program in the place of the value."""
    return graph.addInput(), []


def is_floating(dtype: int) -> bool:
    """Whether TorchScript's number of a type is one of a floating type."""
    return dtype in FLOATING
