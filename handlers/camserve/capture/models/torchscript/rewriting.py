"""Surgery on TorchScript graphs: calls of submodules inlined and marked, so that `cuts` can be made at what they give.

TorchScript has no forward hooks on a loaded archive. This rests on private parts of torch, which `check_torch` looks for.
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
from camserve.core.text import listed

NEEDED: Mapping[str, Sequence[str]] = {
    "torch._C": ("_create_function_from_graph", "_jit_pass_inline", "Graph", "Node", "Value"),
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
"""The operation that marks a call's output: it gives its input, under a value of its own."""

POOLS = frozenset(
    {"aten::adaptive_avg_pool2d", "aten::adaptive_max_pool2d", "aten::avg_pool2d", "aten::max_pool2d", "aten::mean"}
    | {"aten::amax", "aten::sum", "aten::flatten", "aten::reshape", "aten::view"}
)
"""Operations that may end the spatial part of a network."""

Graph: TypeAlias = Any  # the stubs of torch._C's own types lack what is used here
Node: TypeAlias = Any
Value: TypeAlias = Any


def check_torch() -> None:
    """Looks for the private parts of torch that this module and `cuts` use.

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


def inline_calls(module: torch.jit.ScriptModule) -> Program:
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
    _without_no_grad(graph, graph)
    pools = [_marked_ends(graph, node) for node in list(graph.nodes()) if node.kind() in POOLS and _is_tensor(node)]
    places = {node.output().unique(): place for place, node in enumerate(graph.nodes()) if node.kind() == MARK}
    marks = [Mark(*called[value], place) for value, place in places.items() if value in called]
    ends = tuple((places[first], places[last]) for first, last in pools)
    return Program(graph, tuple(marks), ends, frozenset(hidden.difference(mark.path for mark in marks)))


def _without_no_grad(graph: Graph, block: Any) -> None:
    """Takes `with torch.no_grad():` out of a program: who runs it says by itself whether there is to be a graph."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            _without_no_grad(graph, inner)
        ends = node.kind() in ("prim::Enter", "prim::Exit") and str(next(node.inputs()).type()).endswith("grad_mode.no_grad")
        if ends and not node.output().uses():
            destroy(graph, node)


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
    destroy(graph, call)
    return mark


def destroy(graph: Graph, node: Node) -> None:
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


def list_integers(program: Program, largest: int) -> list[int]:
    """The whole numbers from 2 to `largest` that are written into the program, in order."""
    return sorted(number for number in set(_integers(program.graph)) if 2 <= number <= largest)


def _integers(block: Any) -> Iterator[int]:
    for node in block.nodes():
        if node.kind() == "prim::Constant":
            value = node.output().toIValue()
            yield from (each for each in (value if isinstance(value, list) else [value]) if type(each) is int)
        for inner in node.blocks():
            yield from _integers(inner)


def list_constants(program: Program) -> Iterator[Tensor]:
    """The tensors that are written into the program itself."""
    for node in program.graph.nodes():
        if node.kind() == "prim::Constant" and isinstance(value := node.output().toIValue(), Tensor):
            yield value
