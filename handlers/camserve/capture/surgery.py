"""Surgery on TorchScript graphs: calls of submodules inlined and marked, and layers' outputs made outputs of the program.

TorchScript has no forward hooks on a loaded archive. This rests on private parts of torch, which `check_torch` looks for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camserve.errors import ConfigError, listed

NEEDED: Mapping[str, Sequence[str]] = {
    "torch._C": ("_create_function_from_graph", "_jit_pass_inline", "Graph", "Node", "Value"),
    "torch._C.Graph": ("addInput", "copy", "create", "insertConstant", "insertGraph", "insertNode", "nodes", "registerOutput")
    + ("makeMultiOutputIntoTuple", "setInsertPoint"),
    "torch._C.Node": ("blocks", "destroy", "inputs", "kind", "output", "outputs", "owningBlock"),
    "torch._C.Value": ("node", "replaceAllUsesAfterNodeWith", "replaceAllUsesWith", "setType", "type"),
}

MARK = "aten::alias"
"""The operation that marks a call's output: it gives its input, under a value of its own."""

POOLS = frozenset({"aten::adaptive_avg_pool2d", "aten::adaptive_max_pool2d", "aten::avg_pool2d", "aten::mean", "aten::flatten"})
"""Operations that may end the spatial part of a network; `reshape` and `view` too, but they have many other uses."""

Graph, Node, Value = Any, Any, Any  # torch._C's own types have no stubs for what is used here


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
    return functools.reduce(lambda found, name: getattr(found, name, None), path.split(".")[1:], torch)


@dataclass(frozen=True)
class Mark:
    """One call of a submodule: its path, its class, and the place of its output's mark among the graph's nodes."""

    path: str
    kind: str
    place: int


@dataclass(frozen=True)
class Program:
    """A module's `forward` with every call inlined.

    `marks` are in the order in which calls finish; `pools` are places of operations that may pool; `hidden` are submodules that
    run inside a branch or a loop, where their outputs cannot be made outputs of the program.
    """

    graph: Graph
    marks: tuple[Mark, ...]
    pools: tuple[int, ...]
    hidden: frozenset[str]


def inlined(module: torch.jit.ScriptModule) -> Program:
    """Inlines `forward`, and marks the output of every call of a submodule that gives a tensor, or a tuple that starts with one."""
    graph = module._c._get_method("forward").graph.copy()
    owner = next(graph.inputs())
    classes: dict[int, tuple[str, str]] = {}
    calls = _calls(graph)
    while calls:
        for call in calls:
            path, callee = _callee(module, call, owner)
            mark = _inline_call(graph, call, callee._c._get_method(call.s("name")).graph)
            if mark is not None and path and call.s("name") == "forward":
                classes[mark.output().unique()] = path, str(callee.original_name)
            call.destroy()
        calls = _calls(graph)
    hidden = frozenset(_nested_calls(module, graph, owner))
    torch._C._jit_pass_inline(graph)
    marks, pools = [], []
    for place, node in enumerate(graph.nodes()):
        if node.kind() == MARK and node.output().unique() in classes:
            marks.append(Mark(*classes[node.output().unique()], place))
        elif node.kind() in POOLS:
            pools.append(place)
    return Program(graph, tuple(marks), tuple(pools), hidden - {mark.path for mark in marks})


def _calls(block: Any) -> list[Node]:
    return [node for node in block.nodes() if node.kind() == "prim::CallMethod"]


def _callee(module: Any, call: Node, owner: Value) -> tuple[str, Any]:
    """The path and the module that a call goes to: a chain of attributes of the program's own module."""
    names: list[str] = []
    value = next(call.inputs())
    while value.unique() != owner.unique():
        names.insert(0, value.node().s("name"))
        value = next(value.node().inputs())
    return ".".join(names), functools.reduce(getattr, names, module)


def _inline_call(graph: Graph, call: Node, body: Graph) -> Node | None:
    """Puts the body of a method in the place of a call, and marks what it gives."""
    graph.setInsertPoint(call)
    (given,) = graph.insertGraph(body, list(call.inputs()))
    value, rest = given, None
    if given.node().kind() == "prim::TupleConstruct":
        value, *rest = given.node().inputs()
    if not _is_tensor(value):
        call.output().replaceAllUsesWith(given)
        return None
    mark = graph.insertNode(graph.create(MARK, [value]))
    mark.output().setType(value.type())
    answer = mark.output()
    if rest is not None:
        answer = graph.insertNode(graph.create("prim::TupleConstruct", [answer, *rest])).output()
        answer.setType(given.type())
    call.output().replaceAllUsesWith(answer)
    return mark


def _is_tensor(value: Value) -> bool:
    return str(value.type().kind()) == "TensorType"


def _nested_calls(module: Any, block: Any, owner: Value) -> Iterator[str]:
    """Paths of the submodules called in branches and loops, and of all that is in them."""
    for node in block.nodes():
        for inner in node.blocks():
            for call in _calls(inner):
                path, callee = _callee(module, call, owner)
                yield from (f"{path}.{name}".strip(".") for name, _ in callee.named_modules())
            yield from _nested_calls(module, inner, owner)


Cut = Callable[[Graph, Value], tuple[Value, list[Value]]]
"""Adds nodes behind a value: gives what the rest of the program goes on with, and further outputs of the program."""


def with_outputs(program: Program, cuts: Mapping[int, Cut]) -> Any:
    """A function of the program: the module and the pictures in; its answer and, cut by cut, the further outputs out.

    A cut at the place of a mark takes that call's output; at the place of a pool, that operation's input.
    """
    graph = program.graph.copy()
    nodes = list(graph.nodes())
    further: list[Value] = []
    for place, cut in cuts.items():
        node = nodes[place]
        if node.kind() != MARK:
            node = _marked_input(graph, node)
        graph.setInsertPoint(node)
        graph.setInsertPoint(_after(node))
        answer, outputs = cut(graph, next(node.inputs()))
        node.output().replaceAllUsesWith(answer)
        further += outputs
    for mark in program.marks:
        node = nodes[mark.place]
        node.output().replaceAllUsesWith(next(node.inputs()))
    for value in further:
        graph.registerOutput(value)
    if further:
        graph.makeMultiOutputIntoTuple()
    return torch._C._create_function_from_graph("explained", graph)
