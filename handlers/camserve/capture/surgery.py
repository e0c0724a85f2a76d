"""Surgery on TorchScript graphs: calls of submodules inlined and marked, and layers' outputs made outputs of the program.

TorchScript has no forward hooks on a loaded archive. This rests on private parts of torch, which `check_torch` looks for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from camserve.errors import ConfigError, listed

NEEDED: Mapping[str, Sequence[str]] = {
    "torch._C": ("_create_function_from_graph", "_jit_pass_inline", "Graph", "Node", "Value"),
    "torch._C.Graph": (
        *("addInput", "copy", "create", "inputs", "insert", "insertConstant", "insertGraph", "insertNode"),
        *("makeMultiOutputIntoTuple", "nodes", "registerOutput", "return_node", "setInsertPoint"),
    ),
    "torch._C.Node": ("blocks", "destroy", "inputs", "insertAfter", "insertBefore", "kind", "output", "outputs", "s"),
    "torch._C.Value": ("node", "replaceAllUsesAfterNodeWith", "replaceAllUsesWith", "setType", "toIValue", "type", "unique"),
}

MARK = "aten::alias"
"""The operation that marks a call's output: it gives its input, under a value of its own."""

POOLS = frozenset(
    {"aten::adaptive_avg_pool2d", "aten::adaptive_max_pool2d", "aten::avg_pool2d", "aten::max_pool2d", "aten::mean"}
    | {"aten::amax", "aten::sum", "aten::flatten", "aten::reshape", "aten::view"}
)
"""Operations that may end the spatial part of a network."""

SINGLE = 6
"""TorchScript's number of float32."""

FLOATING = frozenset({5, SINGLE, 7, 15})
"""Those of float16, float32, float64 and bfloat16."""

Graph: TypeAlias = Any  # the stubs of torch._C's own types lack what is used here
Node: TypeAlias = Any
Value: TypeAlias = Any


def check_torch() -> None:
    """Looks for the private parts of torch that this module uses.

    Raises:
        ConfigError: this version of torch has not got them.
    """
    missing = [f"{owner}.{name}" for owner, names in NEEDED.items() for name in names if not hasattr(_resolved(owner), name)]
    if missing:
        raise ConfigError(
            f"TorchScript archives cannot be explained with torch {torch.__version__}: it has no {listed(missing)}; "
            "take another version of torch, or the model as eager weights or as an exported program"
        )


def _resolved(path: str) -> Any:
    """`torch._C.Graph`; None where a part of the path is missing."""
    found: Any = torch
    for name in path.split(".")[1:]:
        found = getattr(found, name, None)
    return found


@dataclass(frozen=True)
class Mark:
    """One call of a submodule: its path, its class, and the place of its output's mark among the graph's nodes."""

    path: str
    kind: str
    place: int


@dataclass(frozen=True)
class Program:
    """A module's `forward` with every call inlined.

    `marks` are in the order in which calls finish; `pools` are the marks around operations that may pool; `hidden` are submodules
    that run inside a branch or a loop, where their outputs cannot be made outputs of the program.
    """

    graph: Graph
    marks: tuple[Mark, ...]
    pools: tuple[tuple[int, int], ...]
    hidden: frozenset[str]


def inlined(module: torch.jit.ScriptModule) -> Program:
    """Inlines `forward`, and marks what calls of submodules give: a tensor, or the first of a tuple."""
    check_torch()
    graph = module._c._get_method("forward").graph.copy()
    owner = next(graph.inputs())
    called: dict[int, tuple[str, str]] = {}
    while calls := [(call, path) for call in _calls(graph) if (path := _path(call, owner)) is not None]:
        for call, path in calls:
            callee, method = _submodule(module, path), call.s("name")
            marked = bool(path) and re.fullmatch(r"forward\d*", method) is not None  # a trace numbers the calls
            mark = _inline_call(graph, call, callee._c._get_method(method).graph, marked)
            if mark is not None:
                called[mark.unique()] = path, str(callee.original_name)
    hidden = set(_nested_calls(module, graph, owner))
    torch._C._jit_pass_inline(graph)
    pools = [_marked_ends(graph, node) for node in list(graph.nodes()) if node.kind() in POOLS and _is_tensor(node)]
    places = {node.output().unique(): place for place, node in enumerate(graph.nodes()) if node.kind() == MARK}
    marks = [Mark(*called[value], place) for value, place in places.items() if value in called]
    ends = tuple((places[first], places[last]) for first, last in pools)
    return Program(graph, tuple(marks), ends, frozenset(hidden.difference(mark.path for mark in marks)))


def _is_tensor(node: Node) -> bool:
    """Whether an operation makes a tensor of a tensor (there is an `aten::sum` of numbers too)."""
    return all(next(ends).type().kind() == "TensorType" for ends in (node.inputs(), node.outputs()))


def _marked_ends(graph: Graph, node: Node) -> tuple[int, int]:
    """Marks the first input of an operation, for all that use it, and its output."""
    value, result = next(node.inputs()), next(node.outputs())
    first, last = graph.create(MARK, [value]), graph.create(MARK, [result])
    if value.node().kind() == "prim::Param":
        first.insertBefore(node)
    else:
        first.insertAfter(value.node())
    value.replaceAllUsesAfterNodeWith(first, first.output())
    last.insertAfter(node)
    result.replaceAllUsesAfterNodeWith(last, last.output())
    return first.output().unique(), last.output().unique()


def _calls(block: Any) -> list[Node]:
    return [node for node in block.nodes() if node.kind() == "prim::CallMethod"]


def _path(call: Node, owner: Value) -> str | None:
    """Which submodule a call goes to, "" for the program's own module; None: one that is chosen while it runs."""
    names: list[str] = []
    value = next(call.inputs())
    while value.unique() != owner.unique():
        node = value.node()
        if node.kind() != "prim::GetAttr":
            return None
        names.insert(0, node.s("name"))
        value = next(node.inputs())
    return ".".join(names)


def _submodule(module: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module) if path else module


def _inline_call(graph: Graph, call: Node, body: Graph, marked: bool) -> Value | None:
    """Puts the body of a method in the place of a call, and marks its output; None: it is not marked, or gives no tensor."""
    graph.setInsertPoint(call)
    (given,) = graph.insertGraph(body, list(call.inputs()))
    packed = given.node() if given.node().kind() == "prim::TupleConstruct" else None
    value, *rest = packed.inputs() if packed else (given,)
    mark = None
    if marked and value.type().kind() == "TensorType":
        mark = graph.insert(MARK, [value])
        value = mark
        if packed:
            value = graph.insertNode(graph.create("prim::TupleConstruct", [mark, *rest])).output()
            value.setType(given.type())
        given = value
    call.output().replaceAllUsesWith(given)
    _destroy(graph, call)
    return mark


def _destroy(graph: Graph, node: Node) -> None:
    """Takes a node out of the graph, whose insert point must not stay there: torch's own passes go back to it, and abort."""
    graph.setInsertPoint(graph.return_node())
    node.destroy()


def _nested_calls(module: Any, block: Any, owner: Value) -> Iterator[str]:
    """Paths of the submodules called in branches and loops, and of all that is in them."""
    for node in block.nodes():
        for inner in node.blocks():
            for call in _calls(inner):
                path = _path(call, owner)
                if path is not None:
                    inside = [name for name, _ in _submodule(module, path).named_modules()]
                    yield from (f"{path}.{name}".strip(".") for name in inside)
            yield from _nested_calls(module, inner, owner)


Cut = Callable[[Graph, Value], tuple[Value, list[Value]]]
"""Adds nodes behind a value: gives what the rest of the program goes on with, and further outputs of the program."""


def with_outputs(program: Program, cuts: Mapping[int, Cut]) -> Any:
    """A function of the program: the module and the pictures in; its answer and, cut by cut, the further outputs out.

    Cuts are at marks: a call's output, or an end of an operation that may pool.
    """
    graph = program.graph.copy()
    nodes = list(graph.nodes())
    further: list[Value] = []
    for place, cut in cuts.items():
        mark = nodes[place]
        graph.setInsertPoint(mark)
        answer, outputs = cut(graph, next(mark.inputs()))
        mark.output().replaceAllUsesWith(answer)
        further += outputs
    for place in {mark.place for mark in program.marks}.union(*program.pools):
        node = nodes[place]
        node.output().replaceAllUsesWith(next(node.inputs()))
        _destroy(graph, node)
    for value in further:
        graph.registerOutput(value)
    if further:
        graph.makeMultiOutputIntoTuple()
    return torch._C._create_function_from_graph("explained", graph)


def leaf(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """A cut that adds zeros that require grad: the gradient with respect to them is that with respect to the value.

    So it is for any number of layers in one pass, whichever comes first. Outputs: the value, the zeros.
    """
    zeros = graph.insert("aten::zeros_like", [value])
    zeros = graph.insert("aten::requires_grad_", [zeros, graph.insertConstant(True)])
    return graph.insert("aten::add", [value, zeros]), [graph.insert("aten::detach", [value]), zeros]


def statistics(graph: Graph, value: Value) -> tuple[Value, list[Value]]:
    """A cut that looks. Outputs: shape, type, whether some value is negative, mean, mean square, mean magnitude."""
    false, true, single = graph.insertConstant(False), graph.insertConstant(True), graph.insertConstant(SINGLE)
    copy = graph.insert("aten::to", [value, single, false, true])
    negative = graph.insert("aten::any", [graph.insert("aten::lt", [copy, graph.insertConstant(0)])])
    parts = [copy, graph.insert("aten::mul", [copy, copy]), graph.insert("aten::abs", [copy])]
    means = [graph.insert("aten::mean", [part]) for part in parts]
    return value, [graph.insert("aten::size", [value]), graph.insert("prim::dtype", [value]), negative, *means]


def given_instead(graph: Graph, _value: Value) -> tuple[Value, list[Value]]:
    """A cut that puts a further input of the program in the place of the value."""
    return graph.addInput(), []


def constants(program: Program) -> Iterator[Tensor]:
    """The tensors that are written into the program itself."""
    for node in program.graph.nodes():
        if node.kind() == "prim::Constant" and isinstance(value := node.output().toIValue(), Tensor):
            yield value


def is_floating(dtype: int) -> bool:
    """Whether TorchScript's number of a type is one of a floating type."""
    return dtype in FLOATING
