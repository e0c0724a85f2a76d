"""Rewrites a TorchScript graph: inlines the calls of submodules and marks their outputs, where `outputs` adds nodes.

A loaded TorchScript archive takes no forward hooks. This uses private parts of torch, which `check_torch` looks for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from camserve.core.errors import ConfigError
from camserve.core.text import join_names

NEEDED: Mapping[str, Sequence[str]] = {
    "torch._C": ("_create_function_from_graph", "_jit_pass_constant_propagation", "_jit_pass_inline", "Graph", "Node", "Value"),
    "torch._C.Graph": (
        *("addInput", "alias_db", "copy", "create", "inputs", "insert", "insertConstant", "insertGraph", "insertNode"),
        *("makeMultiOutputIntoTuple", "nodes", "registerOutput", "return_node", "setInsertPoint"),
    ),
    "torch._C.Node": ("blocks", "destroy", "inputs", "insertAfter", "insertBefore", "kind", "output", "outputs", "s"),
    "torch._C.Value": (
        *("node", "replaceAllUsesAfterNodeWith", "replaceAllUsesWith", "setType", "toIValue", "type", "unique", "uses"),
    ),
    "torch._C.AliasDb": ("may_contain_alias",),
}

MARK = "aten::alias"
"""The operation that marks a call's output: it returns its input, as a value of its own."""

POOLS = frozenset(
    {"aten::adaptive_avg_pool2d", "aten::adaptive_max_pool2d", "aten::avg_pool2d", "aten::max_pool2d", "aten::mean"}
    | {"aten::amax", "aten::sum", "aten::flatten", "aten::reshape", "aten::view"}
)
"""Operations that may end the spatial part of a network."""

Graph: TypeAlias = Any  # the stubs of torch._C's own types lack what is used here
Node: TypeAlias = Any
Value: TypeAlias = Any


def check_torch() -> None:
    """Look for the private parts of torch that this module and `outputs` use.

    Raises:
        ConfigError: this version of torch lacks some.
    """
    missing = [f"{owner}.{name}" for owner, names in NEEDED.items() for name in names if not hasattr(_resolve(owner), name)]
    if missing:
        raise ConfigError(
            f"TorchScript archives cannot be explained with torch {torch.__version__}: it has no {join_names(missing)}; "
            "take another version of torch, or the model as eager weights or as an exported program"
        )


def _resolve(path: str) -> Any:
    """Return the object at a path such as `torch._C.Graph`; None where a part of the path is missing."""
    value: Any = torch
    for name in path.split(".")[1:]:
        value = getattr(value, name, None)
    return value


@dataclass(frozen=True)
class Mark:
    """One call of a submodule.

    Attributes:
        path: of the submodule.
        kind: the name of its class.
        place: of its output's mark among the graph's nodes.
    """

    path: str
    kind: str
    place: int


@dataclass(frozen=True)
class Program:
    """A module's `forward` with every call inlined.

    Attributes:
        graph: with its marks.
        marks: in the order in which the calls finish.
        pools: the places of the marks before and behind each operation that may pool.
        hidden: submodules that run inside a branch or a loop, where their outputs cannot be made outputs of the program.
        defaults: of the arguments that `forward` has beside the pictures.
    """

    graph: Graph
    marks: tuple[Mark, ...]
    pools: tuple[tuple[int, int], ...]
    hidden: frozenset[str]
    defaults: tuple[Any, ...] = ()


def inline_calls(module: torch.jit.ScriptModule) -> Program:
    """Inline a module's `forward`, and mark the outputs of its submodules: a tensor, or the first of a tuple.

    Raises:
        ConfigError: this version of torch lacks what is needed.
    """
    check_torch()
    forward = module._c._get_method("forward")
    graph = forward.graph.copy()
    owner = next(graph.inputs())
    optional = [argument.default_value for argument in forward.schema.arguments[2:] if argument.has_default_value()]
    _bind(graph, optional)
    called: dict[int, tuple[str, str]] = {}
    while calls := [(call, path) for call in _calls(graph) if (path := _path(call, owner)) is not None]:
        for call, path in calls:
            callee, method = _submodule(module, path), call.s("name")
            marked = bool(path) and re.fullmatch(r"forward\d*", method) is not None  # a trace numbers the calls
            mark = _inline_call(graph, call, callee._c._get_method(method).graph, marked)
            if mark is not None:
                called[mark.unique()] = path, str(callee.original_name)
        _fold(graph, optional)
    hidden = set(_nested_calls(module, graph, owner))
    torch._C._jit_pass_inline(graph)
    _remove_no_grad(graph, graph)
    pools = [_mark_ends(graph, node) for node in list(graph.nodes()) if node.kind() in POOLS and _is_tensor(node)]
    places = {node.output().unique(): place for place, node in enumerate(graph.nodes()) if node.kind() == MARK}
    marks = [Mark(*called[value], place) for value, place in places.items() if value in called]
    ends = tuple((places[first], places[last]) for first, last in pools)
    return Program(graph, tuple(marks), ends, frozenset(hidden.difference(mark.path for mark in marks)), tuple(optional))


def _bind(graph: Graph, values: Sequence[Any]) -> None:
    """Give constant values to what a graph takes beside the module and the pictures, so that branches on them are no branches."""
    inputs = list(graph.inputs())[2:]
    graph.setInsertPoint(next(iter(graph.nodes())))
    for taken, value in zip(inputs, values, strict=False):
        taken.replaceAllUsesWith(graph.insertConstant(value))
    graph.setInsertPoint(graph.return_node())
    _fold(graph, values)


def _fold(graph: Graph, values: Sequence[Any]) -> None:
    if values:
        torch._C._jit_pass_constant_propagation(graph)


def _remove_no_grad(graph: Graph, block: Any) -> None:
    """Remove `with torch.no_grad():` from a program: whoever runs it decides whether there is an autograd graph."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            _remove_no_grad(graph, inner)
        border = node.kind() in ("prim::Enter", "prim::Exit") and str(next(node.inputs()).type()).endswith("grad_mode.no_grad")
        if border and not node.output().uses():
            destroy(graph, node)


def _is_tensor(node: Node) -> bool:
    """Return whether an operation makes a tensor of a tensor: there is an `aten::sum` of numbers, too."""
    return all(next(ends).type().kind() == "TensorType" for ends in (node.inputs(), node.outputs()))


def _mark_ends(graph: Graph, node: Node) -> tuple[int, int]:
    """Mark the first input of an operation, for all that use it, and its output."""
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
    """Return the path of the called submodule, "" for the program's own module; None for one that is chosen at run time."""
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
    """Replace a call by the body of its method; return the mark of its output, None where it is not marked or no tensor."""
    graph.setInsertPoint(call)
    (output,) = graph.insertGraph(body, list(call.inputs()))
    packed = output.node() if output.node().kind() == "prim::TupleConstruct" else None
    value, *rest = packed.inputs() if packed else (output,)
    mark = None
    if marked and value.type().kind() == "TensorType":
        mark = graph.insert(MARK, [value])
        value = mark
        if packed:
            value = graph.insertNode(graph.create("prim::TupleConstruct", [mark, *rest])).output()
            value.setType(output.type())
        output = value
    call.output().replaceAllUsesWith(output)
    destroy(graph, call)
    return mark


def destroy(graph: Graph, node: Node) -> None:
    """Remove a node, and move the graph's insert point away from it: torch's own passes return to that point, and would abort."""
    graph.setInsertPoint(graph.return_node())
    node.destroy()


def _nested_calls(module: Any, block: Any, owner: Value) -> Iterator[str]:
    """Yield the paths of the submodules that branches and loops call, and of all that is in them."""
    for node in block.nodes():
        for inner in node.blocks():
            for call in _calls(inner):
                path = _path(call, owner)
                if path is not None:
                    inside = [name for name, _ in _submodule(module, path).named_modules()]
                    yield from (f"{path}.{name}".strip(".") for name in inside)
            yield from _nested_calls(module, inner, owner)


def list_integers(program: Program, largest: int) -> list[int]:
    """List the integers from 2 to `largest` that are constants of the program, in order."""
    return sorted(number for number in set(_integers(program.graph)) if 2 <= number <= largest)


def _integers(block: Any) -> Iterator[int]:
    for node in block.nodes():
        if node.kind() == "prim::Constant":
            value = node.output().toIValue()
            yield from (each for each in (value if isinstance(value, list) else [value]) if type(each) is int)
        for inner in node.blocks():
            yield from _integers(inner)


def list_constants(program: Program) -> Iterator[Tensor]:
    """Yield the tensors, of any shape, that are constants of the program."""
    for node in program.graph.nodes():
        if node.kind() == "prim::Constant" and isinstance(value := node.output().toIValue(), Tensor):
            yield value
