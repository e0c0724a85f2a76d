"""Adds outputs to a TorchScript program: its layers' activations, and the leaves that scores are differentiated with respect to.

Like `rewriting`, this uses private parts of torch, which `rewriting.check_torch` looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from camserve.capture.models.programs.torchscript.rewriting import Graph, Node, Program, Value, destroy
from camserve.capture.survey.endings import FUNCTIONS, Ending

FLOAT32 = 6
"""TorchScript's number of the type."""

QUANTIZED = frozenset({12, 13, 14})
"""The numbers of qint8, quint8 and qint32."""

FLOATING = frozenset({5, FLOAT32, 7, 15}) | QUANTIZED
"""The numbers of float16, float32, float64, bfloat16, and of what stands for floats."""

ENDINGS = frozenset({"aten::sigmoid", "aten::special_expit", "aten::softmax"})
"""Operations in which a model may end."""

Insert = Callable[[Graph, Value], tuple[Value, list[Value]]]
"""Inserts nodes behind a value: returns the value that the program goes on with, and values that become further outputs."""


def add_outputs(program: Program, inserts: Mapping[int, Insert], endings: Sequence[int] = ()) -> Any:
    """Make a function of the program with further outputs.

    Args:
        inserts: what is inserted at which marks, by their places.
        endings: the places, in `list_endings`, of functions whose inputs become outputs.

    Returns:
        A function of the module and the pictures. It returns a tuple: the program's own output, then the further outputs of each
        insert in turn, then those of `endings`.
    """
    graph, outputs = _insert(program, inserts)
    further = [value for each in outputs for value in each]
    further += [list_endings(graph)[place][1] for place in endings]
    for value in further:
        graph.registerOutput(value)
    if further:
        graph.makeMultiOutputIntoTuple()
    return torch._C._create_function_from_graph("explained", graph)


def list_endings(graph: Graph) -> list[tuple[Ending, Value]]:
    """List the sigmoids and softmaxes of a graph, with the input of each, where that can become an output of the program."""
    own = {value.unique() for node in graph.nodes() for value in node.outputs()}
    return [
        (FUNCTIONS[node.kind().removeprefix("aten::")], value)
        for node in _list_nodes(graph)
        if node.kind() in ENDINGS and (value := next(node.inputs())).unique() in own
    ]


def _list_nodes(block: Any) -> Iterator[Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _list_nodes(inner)


def add_leaves(
    program: Program, places: Sequence[int], endings: Sequence[int] = (), quantized: Collection[int] = ()
) -> tuple[Any, bool]:
    """Make a function whose further outputs are, for each place, the value there and a leaf of zeros that was added to it.

    The scores can be differentiated with respect to the leaves. Where the program later writes into a value, perhaps through an
    alias, the leaf is added in place. A quantized value has no gradient: the leaf is then no leaf, but the value again.

    Args:
        endings: as of `add_outputs`.
        quantized: the places whose values are quantized.

    Returns:
        The function, as of `add_outputs`, and whether the program writes into one of the values.
    """
    inserts = {place: insert_value if place in quantized else insert_leaf for place in places}
    graph, outputs = _insert(program, inserts)
    aliases = graph.alias_db()
    nodes = list(graph.nodes())
    made = {value.unique(): number for number, node in enumerate(nodes) for value in node.outputs()}
    written = [(number, value) for number, node in enumerate(nodes) for value in _written(node)]
    overwritten = {
        place
        for place, (kept, _) in zip(places, outputs, strict=True)
        if place not in quantized
        and any(number > made[kept.unique()] and aliases.may_contain_alias(value, kept) for number, value in written)
    }
    inserts |= dict.fromkeys(overwritten, insert_leaf_in_place)
    return add_outputs(program, inserts, endings), bool(overwritten)


def _written(node: Node) -> Iterator[Value]:
    """Yield the values that an operation writes into."""
    if node.kind().endswith("_") and not node.kind().endswith("__"):
        yield next(node.inputs())
    for block in node.blocks():
        for inner in block.nodes():
            yield from _written(inner)


def _insert(program: Program, inserts: Mapping[int, Insert]) -> tuple[Graph, list[list[Value]]]:
    """Return a copy of the program's graph without its marks, and the further outputs of each insert."""
    graph = program.graph.copy()
    nodes = list(graph.nodes())
    further: list[list[Value]] = []
    for place, insert in inserts.items():
        mark = nodes[place]
        graph.setInsertPoint(mark)
        value, outputs = insert(graph, next(mark.inputs()))
        mark.output().replaceAllUsesWith(value)
        further.append(outputs)
    for place in {mark.place for mark in program.marks}.union(*program.pools):
        node = nodes[place]
        node.output().replaceAllUsesWith(next(node.inputs()))
        destroy(graph, node)
    return graph, further


def insert_leaf(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Add zeros that require a gradient: the gradient with respect to them is that with respect to the value.

    That holds for any number of layers in one pass, in any order. Outputs: the value, the zeros.
    """
    zeros = graph.insert("aten::zeros_like", [value])
    zeros = graph.insert("aten::requires_grad_", [zeros, graph.insertConstant(True)])
    return graph.insert("aten::add", [value, zeros]), [graph.insert("aten::detach", [value]), zeros]


def insert_leaf_in_place(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Do the same in place, for a value that the program writes into later."""
    kept = graph.insert("aten::clone", [graph.insert("aten::detach", [value])])
    zeros = graph.insert("aten::zeros_like", [value])
    zeros = graph.insert("aten::requires_grad_", [zeros, graph.insertConstant(True)])
    return graph.insert("aten::add_", [value, zeros]), [kept, zeros]


def insert_statistics(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Summarise the value. Outputs: shape, type, whether some element is negative, mean, mean square, mean magnitude."""
    false, true, float32 = graph.insertConstant(False), graph.insertConstant(True), graph.insertConstant(FLOAT32)
    return _summarise(graph, value, graph.insert("aten::to", [value, float32, false, true]))


def insert_quantized_statistics(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Do the same in a program of which some values are quantized."""
    return _summarise(graph, value, graph.insert("aten::dequantize", [value]))


def _summarise(graph: Graph, value: Value, copy: Value) -> tuple[Value, list[Value]]:
    negative = graph.insert("aten::any", [graph.insert("aten::lt", [copy, graph.insertConstant(0)])])
    parts = [copy, graph.insert("aten::mul", [copy, copy]), graph.insert("aten::abs", [copy])]
    means = [graph.insert("aten::mean", [part]) for part in parts]
    return value, [graph.insert("aten::size", [value]), graph.insert("prim::dtype", [value]), negative, *means]


def insert_input(graph: Graph, _value: Value) -> tuple[Value, list[Value]]:
    """Replace the value by a further input of the program. There are no outputs."""
    return graph.addInput(), []


def insert_copy(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Keep the value as it is now. Outputs: a copy, with the value's graph where there is one."""
    return value, [graph.insert("aten::clone", [value])]


def keep_first(copy: Insert, replace: Insert) -> Insert:
    """Return an insert that keeps the value as it is now, and then replaces it."""

    def insert(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
        _, kept = copy(graph, value)
        return replace(graph, value)[0], kept

    return insert


def insert_value(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Output the value as floats, twice: there is no leaf."""
    return value, [graph.insert("aten::dequantize", [value])] * 2


def insert_quantized_copy(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Keep a quantized value as it is now. Outputs: a copy, as floats."""
    return value, [graph.insert("aten::dequantize", [value])]


def insert_quantized_input(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """Replace a quantized value by a further input of floats, quantized as the value is. There are no outputs."""
    how = [graph.insert(name, [value]) for name in ("aten::q_scale", "aten::q_zero_point", "prim::dtype")]
    return graph.insert("aten::quantize_per_tensor", [graph.addInput(), *how]), []


def is_floating(dtype: int) -> bool:
    """Return whether TorchScript's number of a type is that of a floating type, or of one that stands for it."""
    return dtype in FLOATING
