"""The part of an ONNX graph behind a layer, up to the scores, as torch computes and differentiates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.models.programs.graphs.operators.node import allow_for
from camserve.capture.survey.layers import Site
from camserve.capture.survey.reader import OutputReader, Scores


@dataclass(frozen=True)
class Side:
    """A tensor that is computed before a layer, and needed behind it: a residual connection, or a shape.

    Attributes:
        tensor: its name in the graph.
    """

    tensor: str

    @property
    def name(self) -> str:
        """How a runtime's output names it; a layer may be called like the tensor."""
        return f"{self.tensor} (before)"


class GraphHead:
    """What is behind a layer of a graph.

    Attributes:
        sides: what it takes beside the layer, which whoever runs the graph gives too.

    Raises:
        RuntimeError: the scores do not depend on the layer.
    """

    def __init__(self, module: GraphModule, site: Site, reader: OutputReader) -> None:
        self._module = module
        self._site = site
        self._reader = reader
        self._tensor = {path: name for name, path in module.paths.items()}[site.layer]
        self._scores = scores_of(module, reader)
        reached, self._nodes = {self._tensor}, []
        for path, node in module.steps:
            if self._tensor not in node.outputs and not reached.isdisjoint(node.inputs):
                reached.update(filter(None, node.outputs))
                self._nodes.append((path, node))
        wanted = {self._scores}
        for place in reversed(range(len(self._nodes))):
            node = self._nodes[place][1]
            if wanted.isdisjoint(node.outputs):
                del self._nodes[place]
            else:
                wanted.update(node.inputs)
        if self._scores not in reached:
            raise RuntimeError(f"the scores do not depend on layer {site.layer}")
        made = {self._tensor, module.given.name, *(name for _, node in self._nodes for name in node.outputs)}
        taken = dict.fromkeys(name for _, node in self._nodes for name in node.inputs)
        self.sides = tuple(Side(name) for name in taken if not module.is_constant(name) and name not in made)

    def run(self, pictures: Tensor, outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Scores]:
        """Run the head over what a runtime gave for the pictures `[N, C, H, W]`.

        Args:
            outputs: by their names the layer, and the `sides`.

        Returns:
            The leaf by the layer's name, and the scores with the graph that goes back to it.
        """
        module, layer = self._module, self._site.layer
        leaf = outputs[layer].detach().requires_grad_()
        given = pictures.permute(0, 2, 3, 1) if module.given.last else pictures
        count = len(pictures)
        with torch.inference_mode(mode=False), torch.enable_grad(), allow_for(count), self._reader.watch(count) as watch:
            values = {module.given.name: given, self._tensor: leaf.clone()}
            values |= {side.tensor: outputs[side.name] for side in self.sides}
            for path, node in self._nodes:
                module.put(node, module.get_submodule(path)(*(module.find(name, values) for name in node.inputs)), values)
            made = values[self._scores]
            answer = made if len(module.outputs) == 1 else {self._scores: made}
            return {layer: leaf}, self._reader.read(answer, count, watch)


def scores_of(module: GraphModule, reader: OutputReader) -> str:
    """Return the name of the output that holds the scores."""
    return str(reader.path[0]) if reader.path else module.outputs[0]
