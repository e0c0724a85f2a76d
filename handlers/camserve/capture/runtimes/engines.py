"""What computes a graph: ONNX Runtime, OpenVINO, or what torch.compile makes of the model."""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from camserve.capture.runtimes.outputs import AT, SCORES, Outputs

ENGINES = ("onnxruntime", "openvino")
"""Runtimes that read a graph; each is a package and an extra of the same name."""

PACKAGES = MappingProxyType({"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "onnxruntime"})
"""The package of each runtime; TensorRT is a part of some builds of ONNX Runtime."""

CUT = 0.6
"""A model whose layers are explained by autograd is compiled a second time without what is behind them, where the part before
them holds at most this share of the weights: then torch alone computes what is behind, and not the runtime too."""

Given = tuple[Tensor, dict[str, Tensor]]
"""A model's own values, and the outputs that were asked for by their names, as the model lays them out."""


class Engine(Protocol):
    """Computes a model's scores and some of its layers' outputs; safe to use from several threads at once."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the outputs that `run` can give beside the scores."""
        ...

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures `[N, C, H, W]`, float32; what is not asked for is not copied."""
        ...


Part = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""Runs over pictures `[N, C, H, W]`, float32, only what the outputs of these names need; gives no scores."""


def is_installed(runtime: str) -> bool:
    """Return whether a runtime can be used here; torch and its compiler always can."""
    name = PACKAGES.get(runtime)
    return name is None or importlib.util.find_spec(name) is not None


def version_of(runtime: str) -> str:
    """Return the version of a runtime's package."""
    if runtime not in PACKAGES:
        return torch.__version__
    package: str = importlib.import_module(
        PACKAGES[runtime]
    ).__version__  # of a build for GPUs too, whose distribution has another name
    return package


def open_engine(runtime: str, graph: bytes | Path, threads: int) -> Engine:
    """Open a graph with one of `ENGINES`.

    Raises:
        Exception: whatever the engine raises for a graph that it does not take.
    """
    return OPENERS[runtime](graph, threads)


def find_names(outputs: Iterable[str]) -> frozenset[str]:
    """Find the names that `run` takes among those of a graph's outputs."""
    return frozenset(name.removeprefix(AT) for name in outputs if name.startswith(AT))


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime, on the CPU unless other providers are named."""

    def __init__(self, graph: bytes | Path, threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime  # noqa: PLC0415 an extra, and it takes time

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads keep a core after each run
        options.log_severity_level = 3  # errors; they are raised too
        given: Any = str(graph) if isinstance(graph, Path) else graph
        self._session = onnxruntime.InferenceSession(given, options, providers=list(providers))
        self._input = self._session.get_inputs()[0].name
        self.names = find_names(each.name for each in self._session.get_outputs())

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures; outputs that nobody asked for stay where they are."""
        asked = [SCORES, *(AT + name for name in names)]
        scores, *outputs = self._session.run(asked, {self._input: pictures.contiguous().numpy()})
        return torch.from_numpy(scores), {name: torch.from_numpy(each) for name, each in zip(names, outputs, strict=True)}


class _OpenVinoModel:
    """A compiled model of OpenVINO's, on the CPU, in float32: by itself it would choose bfloat16 where the processor has it."""

    def __init__(self, core: Any, model: Any, threads: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the workers of one machine would all take its first cores
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self.places = {name: place for place, each in enumerate(self._compiled.outputs) for name in each.names}
        self._local = threading.local()

    def run(self, pictures: Tensor, outputs: Iterable[str]) -> list[Tensor]:
        """Run over pictures; each thread has a request of its own, which holds its last results."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer({0: pictures.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(request.get_output_tensor(self.places[name]).data.copy()) for name in outputs]


class OpenVinoEngine:
    """A graph in OpenVINO.

    Args:
        behind: the outputs that are differentiated with respect to.

    Attributes:
        part: runs what is before those, where that is worth the memory.
    """

    def __init__(self, graph: bytes | Path, threads: int, behind: Collection[str] = ()) -> None:
        import openvino  # noqa: PLC0415 an extra, and it takes time

        core = openvino.Core()
        model = core.read_model(str(graph) if isinstance(graph, Path) else graph)
        self._whole = _OpenVinoModel(core, model, threads)
        self.names = find_names(self._whole.places)
        wanted = {AT + name for name in behind}
        found = [result for result, output in zip(model.get_results(), model.outputs, strict=True) if wanted & output.names]
        self.part: Part | None = None
        if found and len(found) == len(wanted):
            before = openvino.Model(found, model.get_parameters(), "before")
            if _count_weights(before) <= CUT * _count_weights(model):
                self.part = partial(_run_part, _OpenVinoModel(core, before, threads))

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures."""
        scores, *outputs = self._whole.run(pictures, [SCORES, *(AT + each for each in names)])
        return scores, dict(zip(names, outputs, strict=True))


def _run_part(model: _OpenVinoModel, pictures: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    return dict(zip(names, model.run(pictures, [AT + name for name in names]), strict=True))


def _count_weights(model: Any) -> int:
    """Count the numbers in a model's constants."""
    return sum(math.prod(each.shape) for each in model.get_ordered_ops() if each.get_type_name() == "Constant")


class CompiledEngine:
    """What a compiler of torch's makes of a model with its further outputs.

    Args:
        module: gives the outputs.
        names: of these.
        compiler: makes a faster module of a module: `torch.compile`, or what has compiled the model that was loaded.
    """

    def __init__(self, module: Outputs, names: Sequence[str], compiler: Callable[[Any], Any]) -> None:
        import torch._dynamo  # noqa: PLC0415 takes seconds, and no other runtime needs it

        torch._dynamo.config.skip_nnmodule_hook_guards = False  # else what was compiled without hooks would pass for this
        self._run = compiler(module)
        self._names = tuple(names)
        self._lock = threading.Lock()  # its hooks keep outputs in the module
        self.names = frozenset(names)

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures, one thread at a time."""
        torch._dynamo.maybe_mark_dynamic(pictures, 0)
        with self._lock, torch.no_grad():
            scores, *outputs = self._run(pictures)
        given = dict(zip(self._names, outputs, strict=True))
        return scores, {name: given[name] for name in names}


OPENERS: MappingProxyType[str, Callable[[bytes | Path, int], Engine]] = MappingProxyType(
    {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
)
