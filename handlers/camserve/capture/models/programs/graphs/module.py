"""An ONNX graph as a module of torch's, with a submodule for each operation, by the name of the tensor that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.models.programs.graphs.file import read_graph
from camserve.capture.models.programs.graphs.operators.node import Node, Operation, allow_for, check_size
from camserve.capture.models.programs.graphs.operators.quantized import DYNAMIC
from camserve.capture.models.programs.graphs.reading import keep_needed, read_input, read_nodes, to_tensor
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.core.errors import ConfigError

MAX_CONSTANTS = 2**29
"""Most values of all constants that are computed when a graph is opened."""


class Step(nn.Module):
    """One operation of a graph."""

    def __init__(self, node: Node, function: Operation) -> None:
        super().__init__()
        self.node = node
        self.function = function

    def forward(self, *inputs: Tensor | None) -> Any:
        """Compute it.

        Raises:
            RuntimeError: it cannot be, in words.
        """
        try:
            return self.function(self.node, *inputs)
        except MODEL_ERRORS as error:
            raise RuntimeError(f"the operator {self.node.kind} that makes {self.node.outputs[0]}: {error}") from error


class PassOn(nn.Module):
    """Stands for a further output of an operation, so that it is a layer too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        return x


class GraphModule(nn.Module):
    """An ONNX graph that torch computes, in float32; half precision and whole numbers of quantized graphs become floats.

    Attributes:
        path: the graph's file.
        given: what it takes.
        outputs: the names of what it gives.
        steps: its operations, in order, each with its module's path; without those that nobody needs.
        paths: the path of the module that makes a tensor.
        is_quantized: whether values are rounded to whole numbers in it.
        is_half: whether it computes in half precision.
        is_dynamic: whether it rounds by the range of all pictures at once.

    Raises:
        ConfigError: it has operators that are not known here, or takes something else than pictures.
    """

    def __init__(self, model: Any, path: Path) -> None:
        super().__init__()
        self.path = path
        self.given = read_input(model, path)
        self.outputs = tuple(each.name for each in model.graph.output)
        self.is_half = self.given.kind == 10 or any(each.data_type in (10, 16) for each in model.graph.initializer)
        self._places: dict[str, str] = {}
        self._whole: dict[str, Tensor] = {}  # numbers, shapes and indices, which stay on the CPU
        for tensor in model.graph.initializer:
            self._keep(tensor.name, to_tensor(tensor))
        nodes = keep_needed(read_nodes(model, path), self.outputs)
        self.is_quantized = any("QuantizeLinear" in node.kind or node.kind.endswith("Integer") for node, _ in nodes)
        self.is_dynamic = any(node.kind in DYNAMIC for node, _ in nodes)
        self.paths: dict[str, str] = {}
        self.steps: list[tuple[str, Node]] = []
        folded = 0
        for node, function in nodes:
            if all(map(self.is_constant, node.inputs)):
                folded += self._fold(Step(node, function))
                if folded > MAX_CONSTANTS:
                    raise ConfigError(f"{path.name} computes more than {MAX_CONSTANTS} constant values when it is opened")
                continue
            self.steps.append((self._add(node.outputs[0], Step(node, function)), node))
            for name in filter(None, node.outputs[1:]):
                self._add(name, PassOn())
        used = {name for _, node in self.steps for name in node.inputs} | set(self.outputs)
        for name in self._places.keys() - used:
            delattr(self, self._places.pop(name))
        self._whole = {name: value for name, value in self._whole.items() if name in used}
        self._last = {name: place for place, (_, node) in enumerate(self.steps) for name in node.inputs}
        self.eval()

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) of the pictures that it takes; None: of any, or nothing tells."""
        height, width = (self.given.shape[1:3] if self.given.last else self.given.shape[2:]) or (None, None)
        return None if height is None or width is None else (height, width)

    def forward(self, pictures: Tensor) -> Any:
        """Compute the outputs for `[N, C, H, W]`: the only one, or all by their names."""
        pictures = pictures.permute(0, 2, 3, 1) if self.given.last else pictures
        values: dict[str, Tensor] = {self.given.name: pictures}
        with allow_for(len(pictures)):
            for place, (path, node) in enumerate(self.steps):
                made = self.get_submodule(path)(*(self.find(name, values) for name in node.inputs))
                self.put(node, made, values, call=True)
                for name in node.inputs:
                    if self._last[name] == place and name not in self.outputs:
                        values.pop(name, None)
        found = {name: self.find(name, values) for name in self.outputs}
        return found[self.outputs[0]] if len(self.outputs) == 1 else found

    def find(self, name: str, values: Mapping[str, Tensor]) -> Any:
        """Return a constant, or a value by its name; None of ""."""
        if not name:
            return None
        if name in self._whole:
            return self._whole[name]
        return self._buffers[self._places[name]] if name in self._places else values[name]

    def put(self, node: Node, made: Any, values: dict[str, Tensor], *, call: bool = False) -> None:
        """Put what a node has made among the values; `call`: further outputs are layers too."""
        outputs = made if isinstance(made, tuple) else (made,)
        for place, (name, value) in enumerate(zip(node.outputs, outputs, strict=False)):
            if name:
                check_size(value.shape)
                values[name] = self.get_submodule(self.paths[name])(value) if call and place else value

    def is_constant(self, name: str) -> bool:
        """Return whether a tensor is the same for all pictures."""
        return not name or name in self._places or name in self._whole

    def constants(self) -> Iterable[Tensor]:
        """Return the constants that are no whole numbers, and what is computed of constants alone."""
        return [each for each in self._buffers.values() if each is not None]

    def _keep(self, name: str, value: Tensor | None) -> None:
        """Keep a constant under its name; None: its type is not known here, which whoever uses it says."""
        if value is not None and not value.is_floating_point():
            self._whole[name] = value
        elif value is not None:
            place = self._places[name] = f"constant_{len(self._places)}"
            self.register_buffer(place, value, persistent=False)

    def _fold(self, step: Step) -> int:
        """Compute constants of constants; return how many values."""
        values: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                self.put(step.node, step(*(self.find(name, {}) for name in step.node.inputs)), values)
        except MODEL_ERRORS as error:
            raise ConfigError(f"{self.path.name}: {error}") from error
        for name, value in values.items():
            self._keep(name, value.contiguous())
        return sum(value.numel() for value in values.values())

    def _add(self, name: str, module: nn.Module) -> str:
        """Put a module at the path that a tensor's name is, or if it cannot be one, at one like it; return that."""
        *holders, last = (part or "_" for part in name.split("."))
        place: nn.Module = self
        walked = []
        for given in holders:
            part = given
            while part not in place._modules and hasattr(place, part):
                part += "_"
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
            walked.append(part)
        kept = place._modules.get(last)
        if type(kept) is nn.Module:  # it only holds others, whose names go on from this one's
            for inner, each in kept._modules.items():
                module.add_module(inner, each)
            del place._modules[last]
        while hasattr(place, last):
            last += "_"
        place.add_module(last, module)
        path = self.paths[name] = ".".join([*walked, last])
        return path


def load_graph(path: Path, device: torch.device | str = "cpu") -> GraphModule:
    """Load a file with an ONNX graph as a module on `device`.

    Raises:
        ConfigError: it cannot be read, or not be computed here.
    """
    module = GraphModule(read_graph(path), path.resolve())
    module.to(device)
    return module
