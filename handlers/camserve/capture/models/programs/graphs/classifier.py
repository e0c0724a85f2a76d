"""Capture for ONNX graphs: torch computes them like eager modules, and their tensors are the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, CaptureSettings
from camserve.capture.models.eager import EagerCapture, EagerClassifier
from camserve.capture.models.hooks import hook_every_call
from camserve.capture.models.passes import SplitCapture
from camserve.capture.models.programs.graphs.module import GraphModule, PassOn, Step
from camserve.capture.survey.builder import SurveyBuilder
from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import extract_tensor
from camserve.core.errors import ConfigError

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "AveragePool": "AvgPool2d",
        "Cast": "Identity",
        "Conv": "Conv2d",
        "ConvInteger": "Conv2d",
        "DequantizeLinear": "DeQuantize",
        "Expand": "Identity",
        "GlobalAveragePool": "AvgPool2d",
        "GlobalMaxPool": "AdaptiveMaxPool2d",
        "Reshape": "Identity",
        "Squeeze": "Identity",
        "Transpose": "Identity",
        "Unsqueeze": "Identity",
    }
)
"""torch's classes of what some operators do, which tell the survey what only pools or passes on."""

PASSING = frozenset(
    {"Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that pass on what they are given, in another form."""

ENDINGS = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})

LARGEST_POOL = 3
"""Maxima of more rows and columns that do not overlap are what an adaptive pooling to few cells is written as."""

WHOLE = ("QuantizeLinear", "DynamicQuantizeLinear")
"""Operators that give whole numbers, which are no activation; what they stand for is the layer behind."""


class GraphClassifier(EagerClassifier):
    """An ONNX graph (`Classifier`), with a submodule for each of its operations.

    Raises:
        ConfigError: it rounds probabilities.
        RuntimeError: it takes pictures of another size, or another number of channels, or does not run.
    """

    kind = "onnx"

    def __init__(self, module: GraphModule, pictures: Tensor) -> None:
        super().__init__(module)
        self.graph = module
        fixed = module.given.shape[0] if module.given.shape else None
        self.batch = (fixed, fixed) if fixed else (1, 1) if module.is_dynamic else (1, None)
        self.clips = module.is_quantized
        _check_shape(module, pictures)
        _check_ending(module)

    def _record(self, pictures: Tensor, builder: SurveyBuilder) -> Tensor:
        """Record a run, and return its scores `[N, K]`."""

        def record(name: str, module: nn.Module, output: Any) -> None:
            tensor = extract_tensor(output)
            whole = isinstance(module, Step) and module.node.kind in WHOLE
            builder.record(name, self.class_of(module), None if whole else tensor)

        with torch.no_grad(), hook_every_call(self.module, record):
            return self.reader.read(self.run(pictures), len(pictures)).logits

    def class_of(self, module: nn.Module) -> str:
        """Return the name of the class of torch's that does what an operator does."""
        if isinstance(module, PassOn):
            return "Identity"
        if not isinstance(module, Step):
            return type(module).__name__
        kind, kernel = module.node.kind, list(module.node.get("kernel_shape") or ())
        if kind == "MaxPool" and kernel == list(module.node.get("strides") or ()) and min(kernel) > LARGEST_POOL:
            return "AdaptiveMaxPool2d"
        return CLASSES.get(kind, kind)

    def capture(self, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> Capture:
        """Make a capture at these layers."""
        capture = EagerCapture(self.module, sites, self.complete(settings))
        return SplitCapture(capture, *self.batch) if self.batch != (1, None) else capture

    def weights(self) -> Iterable[Tensor]:
        """Return the constants; matrices both ways round, as operators take them."""
        for each in self.graph.constants():
            if each.is_floating_point():
                yield each
                if each.ndim == 2:
                    yield each.T

    def quantized_output(self, site: Site, pictures: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return None: whole numbers are floats here."""
        return None


def _check_shape(module: GraphModule, pictures: Tensor) -> None:
    """Refuse pictures that the graph does not take; torch would run some of it all the same.

    Raises:
        RuntimeError: they have another size, or another number of channels.
    """
    shape, (channels, *size) = module.given.shape, pictures.shape[1:]
    if not shape:
        return
    depth = shape[3] if module.given.last else shape[1]
    if depth not in (None, channels):
        raise RuntimeError(f"the graph expects pictures to have {depth} channels, but got {channels} channels")
    sides = shape[1:3] if module.given.last else shape[2:]
    if any(side not in (None, own) for side, own in zip(sides, size, strict=True)):
        words = ["any" if side is None else str(side) for side in sides]
        raise RuntimeError(f"the graph was written for {'x'.join(words)}, and given {size[0]}x{size[1]}")


def _check_ending(module: GraphModule) -> None:
    """Refuse a graph that rounds probabilities to whole numbers: then no trial tells of which function they are.

    Raises:
        ConfigError: it does.
    """
    makers = {name: node for _, node in module.steps for name in node.outputs}
    for output in module.outputs:
        node, rounded = makers.get(output), False
        while node is not None and node.kind in PASSING:
            rounded |= node.kind == "QuantizeLinear"
            node = makers.get(node.inputs[0])
        if rounded and node is not None and node.kind in ENDINGS:
            raise ConfigError(
                f"the graph ends in a {node.kind}, and rounds its probabilities to whole numbers, so that they neither add up "
                "to 1 nor tell what is behind them; quantize it without that (nodes_to_exclude in onnxruntime.quantization), "
                "or without its last function, which camserve computes itself"
            )
