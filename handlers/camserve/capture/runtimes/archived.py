"""Runs an ONNX graph that came as the model itself: in ONNX Runtime or OpenVINO, with the layers as further outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.base import Capture, CaptureSettings
from camserve.capture.models.passes import SplitCapture, fit_batch
from camserve.capture.models.programs.graphs.classifier import GraphClassifier
from camserve.capture.models.programs.graphs.file import add_outputs, read_graph
from camserve.capture.models.programs.graphs.head import GraphHead, scores_of
from camserve.capture.models.programs.graphs.reading import Input
from camserve.capture.runtimes.agreement import Tolerance, comparable, find_faults
from camserve.capture.runtimes.capture import RuntimeCapture
from camserve.capture.runtimes.choose import Runtime, measure
from camserve.capture.runtimes.engines import (
    Engine,
    Given,
    OnnxRuntimeSession,
    OpenVinoSession,
    Part,
    SessionEngine,
    is_installed,
    version_of,
)
from camserve.capture.runtimes.outputs import AT
from camserve.capture.survey.layers import Site
from camserve.core.errors import ConfigError
from camserve.core.text import in_one_line

logger = logging.getLogger(__name__)

DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}
"""The types of pictures that a graph may take, by ONNX's numbers."""

TENSORRT = "TensorrtExecutionProvider"

SAME = Tolerance(scores=1e-4, maps=1e-3)
"""Of a graph in float32: two ways to compute the same round otherwise, and an operator that is computed otherwise differs by far
more. The runtime's scores and activations are what is answered; only gradients are torch's."""

HALF = Tolerance(scores=1e-2, maps=2e-2)
"""Of a graph in half precision, which torch computes in full; of activations the mean difference, as a share of their mean."""

QUANTIZED = Tolerance(scores=5e-2, maps=1e-1)
"""The same of a graph that rounds to whole numbers: two ways to add up can round to neighbouring ones."""

DIFFERS = (
    "ONNX Runtime's answers for this graph are not those that its operators stand for, as torch computes them: {}; export it "
    "without a runtime's own optimisations, or package the PyTorch model that it was written from"
)


@dataclass(frozen=True)
class GraphEngine:
    """An engine that takes pictures as the graph does, and gives floats (`Engine`).

    Attributes:
        engine: runs the graph.
        given: what the graph takes.
        part: none.
    """

    engine: Engine
    given: Input
    part: Part | None = None  # the runtime's own scores are what is answered

    @property
    def names(self) -> frozenset[str]:
        """The names of the outputs that `run` can give beside the scores."""
        return self.engine.names

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures `[N, C, H, W]`, on any device."""
        given = pictures.permute(0, 2, 3, 1) if self.given.last else pictures
        scores, outputs = self.engine.run(given.detach().to("cpu", DTYPES[self.given.kind]), names)
        return _as_floats(scores, pictures), {name: _as_floats(each, pictures) for name, each in outputs.items()}


def _as_floats(values: Tensor, pictures: Tensor) -> Tensor:
    return values.to(pictures.device, torch.float32 if values.is_floating_point() else values.dtype)


@dataclass(frozen=True)
class ArchivedGraph:
    """A graph that is the model.

    Attributes:
        classifier: the graph as torch computes it.
        capture: runs that.
        sites: its layers, the default first.
        settings: how it is run.
        pictures: `[N, C, H, W]`, N at least 3, to try it on.
    """

    classifier: GraphClassifier
    capture: Capture
    sites: Mapping[str, Site]
    settings: CaptureSettings
    pictures: Tensor

    def open(self, runtime: str) -> Capture:
        """Open it in a runtime.

        Raises:
            RuntimeError: it does not run there, or gives other answers than torch; in words.
        """
        module = self.classifier.graph
        heads = {layer: GraphHead(module, site, self.settings.reader) for layer, site in self.sites.items()}
        tensors = {path: name for name, path in module.paths.items()}
        names = {AT + layer: tensors[layer] for layer in self.sites}
        names |= {AT + side.name: side.tensor for head in heads.values() for side in head.sides}
        graph = add_outputs(read_graph(module.path), scores_of(module, self.settings.reader), names)
        try:
            engine = GraphEngine(_open_engine(runtime, graph, self.pictures.device), module.given)
        except Exception as error:
            raise RuntimeError(f"{runtime} does not take the graph: {in_one_line(error)[:300]}") from error
        shape = tuple(self.pictures.shape[1:]) if module.size else None
        batch = self.classifier.batch
        run = RuntimeCapture(self._unsplit(), engine, self.sites, heads, self.settings, shape)
        capture = SplitCapture(run, *batch) if batch != (1, None) else run
        try:
            told = self._find_faults(capture) if self.within == SAME else self._find_gross_faults(run)
        except Exception as error:  # the engine's own exceptions
            raise RuntimeError(f"{runtime}: {in_one_line(error)[:300]}") from error
        if told:
            raise RuntimeError(DIFFERS.format(told))
        return capture

    @property
    def within(self) -> Tolerance:
        """How far the runtime's answers may lie from torch's."""
        module = self.classifier.graph
        return QUANTIZED if module.is_quantized else HALF if module.is_half else SAME

    def _unsplit(self) -> Capture:
        """Return the capture in torch, which takes as many pictures at once as it is given."""
        return self.capture._capture if isinstance(self.capture, SplitCapture) else self.capture

    def _find_faults(self, capture: Capture) -> str:
        """Compare scores, activations, gradients and maps with torch's; return what differs, in words."""
        reader = self.settings.reader
        faults = find_faults(self.capture, capture, self.pictures, self.sites, reader=reader, within=self.within)
        return "; ".join(f"{f'layer {layer}: ' if layer else ''}{fault}" for layer, fault in faults.items())

    def _find_gross_faults(self, run: RuntimeCapture) -> str:
        """Compare what rounding leaves comparable; return what differs, in words.

        Activations go by their mean, for single ones may be rounded otherwise; then a gradient that is 0 beyond a range may
        differ by all of it. That of the head is right where the head gives the runtime's scores, of the runtime's activation.
        """
        reader, most = self.settings.reader, self.within
        for part in torch.split(self.pictures, self.classifier.batch[1] or len(self.pictures)):
            given = fit_batch(part, self.classifier.batch)
            exact, own = self._unsplit().forward(given, list(self.sites)), run.forward(given, list(self.sites))
            wanted = comparable(own.values, reader)
            difference = float((comparable(exact.values, reader) - wanted).abs().max())
            if not difference <= most.scores:
                return f"probabilities differ by {difference:.1g}"
            for layer, head in run.heads.items():
                one, other = exact.activation(layer), own.activation(layer)
                share = float((one - other).abs().mean() / one.abs().mean())
                if not share <= most.maps:
                    return f"layer {layer}: its activation differs by {share:.1g}"
                _, outputs = run.engine.run(given, [layer, *(side.name for side in head.sides)])
                difference = float((comparable(head.run(given, outputs)[1].values.detach(), reader) - wanted).abs().max())
                if not difference <= most.scores:
                    return f"layer {layer}: what is behind it gives probabilities that differ by {difference:.1g}"
        return ""


def open_archived(asked: str, graph: ArchivedGraph) -> tuple[Capture, Runtime]:
    """Open a graph in ONNX Runtime, or in OpenVINO or TensorRT where that is asked for; what cannot be had, ONNX Runtime runs.

    Raises:
        ConfigError: it does not run, or its answers are not those of its operators.
    """
    why = ""
    opened: dict[str, Capture] = {}
    if asked in ("openvino", "tensorrt") or (asked == "auto" and is_installed("openvino")):
        name = "openvino" if asked == "auto" else asked
        try:
            opened[name] = graph.open(name)
        except RuntimeError as error:
            why = f"{name}: {error}"
            logger.warning("camserve: ONNX Runtime runs the graph in place of the runtime %s", why)
    elif asked in ("torch", "compile"):
        why = f"{asked}: an ONNX graph runs in ONNX Runtime, OpenVINO or TensorRT"
    if not opened or asked == "auto":
        try:
            opened["onnxruntime"] = graph.open("onnxruntime")
        except RuntimeError as error:
            raise ConfigError(str(error)) from error
    seconds = measure(opened, graph.pictures, next(iter(graph.sites))) if len(opened) > 1 else {}
    name = min(opened, key=lambda each: seconds.get(each, 0.0))
    return opened[name], Runtime(name, why, tuple(graph.sites), version_of(name), seconds, graph.within)


def _open_engine(runtime: str, graph: bytes, device: torch.device) -> Engine:
    if not is_installed(runtime):
        raise RuntimeError(f"{runtime} is not installed here (pip install 'camserve[{runtime}]')")
    threads = torch.get_num_threads()
    if runtime == "openvino":
        return SessionEngine(OpenVinoSession(graph, threads))
    return SessionEngine(OnnxRuntimeSession(graph, threads, choose_providers(device, tensorrt=runtime == "tensorrt")))


def choose_providers(device: torch.device, *, tensorrt: bool = False) -> list[str]:
    """Return where ONNX Runtime computes: on the worker's device where its build can, as TorchServe's own handler has it.

    Args:
        tensorrt: TensorRT comes first. That path has not been tried on a machine that has it.

    Raises:
        RuntimeError: there is no TensorRT here.
    """
    import onnxruntime  # noqa: PLC0415 an extra, and it takes time

    available = onnxruntime.get_available_providers()
    if tensorrt and (device.type != "cuda" or TENSORRT not in available):
        raise RuntimeError(f"it takes a GPU and an ONNX Runtime that was built with it, which has {', '.join(available)} here")
    wanted = [TENSORRT] if tensorrt else []
    wanted += ["CUDAExecutionProvider"] if device.type == "cuda" else []
    return [name for name in (*wanted, "CPUExecutionProvider") if name in available]
