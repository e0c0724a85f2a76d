"""What computes a graph: ONNX Runtime, OpenVINO, or what torch.compile makes of the model."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
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

Given = tuple[Tensor, dict[str, Tensor]]
"""A model's own values, and the outputs that were asked for by their names, as the model lays them out."""


class Session(Protocol):
    """A graph that a runtime has opened; safe to use from several threads at once."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of what the graph takes."""
        ...

    @property
    def outputs(self) -> Collection[str]:
        """The names of what it gives."""
        ...

    def run(self, given: Sequence[Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """Run over its inputs, in their order, float32; what is not asked for is not copied."""
        ...


class Part:
    """What is before some layers: gives their outputs, and no scores.

    Args:
        session: of that graph.

    Attributes:
        names: of the outputs.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.names = find_names(session.outputs)

    def run(self, pictures: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Run over pictures `[N, C, H, W]`, float32."""
        return dict(zip(names, self._session.run([pictures], [AT + name for name in names]), strict=True))


class Engine(Protocol):
    """Computes a model's scores and some of its layers' outputs; safe to use from several threads at once."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the outputs that `run` can give beside the scores."""
        ...

    @property
    def part(self) -> Part | None:
        """Computes layers without what is behind them, which a head then computes, with the scores; None: there is none."""
        ...

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures `[N, C, H, W]`, float32; what is not asked for is not copied."""
        ...


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


def open_engine(runtime: str, graph: bytes | Path, threads: int, behind: bytes | Path | None = None) -> Engine:
    """Open a graph with one of `ENGINES`.

    Args:
        behind: the graph that goes on from that to the scores (`graph.split_graph`); None: it is whole.

    Raises:
        Exception: whatever the engine raises for a graph that it does not take.
    """
    opener = OPENERS[runtime]
    return SessionEngine(opener(graph, threads), None if behind is None else opener(behind, threads))


def find_names(outputs: Iterable[str]) -> frozenset[str]:
    """Find the names that `run` takes among those of a graph's outputs."""
    return frozenset(name.removeprefix(AT) for name in outputs if name.startswith(AT))


class SessionEngine:
    """A model with its further outputs, in a runtime.

    Args:
        graph: all of it, or what is before the layers.
        behind: what goes on from there, which takes outputs of the first.
    """

    def __init__(self, graph: Session, behind: Session | None = None) -> None:
        self._graph = graph
        self._behind = behind
        self.names = find_names([*graph.outputs, *(behind.outputs if behind is not None else ())])
        self.part = None if behind is None else Part(graph)

    def run(self, pictures: Tensor, names: Sequence[str]) -> Given:
        """Run over pictures."""
        asked = [SCORES, *(AT + name for name in names)]
        if self._behind is None:
            scores, *outputs = self._graph.run([pictures], asked)
            return scores, dict(zip(names, outputs, strict=True))
        first = [name for name in dict.fromkeys([*asked, *self._behind.inputs]) if name in self._graph.outputs]
        found = dict(zip(first, self._graph.run([pictures], first), strict=True))
        rest = [name for name in asked if name not in found]
        given = [found[name] for name in self._behind.inputs]
        found |= dict(zip(rest, self._behind.run(given, rest), strict=True))
        return found[SCORES], {name: found[AT + name] for name in names}


class OnnxRuntimeSession:
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
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]

    def run(self, given: Sequence[Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """Run; outputs that nobody asked for stay where they are."""
        found = self._session.run(list(outputs), dict(zip(self.inputs, map(_as_array, given), strict=True)))
        return [torch.from_numpy(each) for each in found]


class OpenVinoSession:
    """A graph in OpenVINO, on the CPU, in float32: by itself it would choose bfloat16 where the processor has it."""

    def __init__(self, graph: bytes | Path, threads: int) -> None:
        import openvino  # noqa: PLC0415 an extra, and it takes time

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the workers of one machine would all take its first cores
        }
        model = core.read_model(str(graph) if isinstance(graph, Path) else graph)
        self._compiled = core.compile_model(model, "CPU", settings)
        self.inputs = [each.any_name for each in self._compiled.inputs]
        self._places = {name: place for place, each in enumerate(self._compiled.outputs) for name in each.names}
        self._local = threading.local()

    @property
    def outputs(self) -> Collection[str]:
        """The names of the graph's outputs."""
        return self._places

    def run(self, given: Sequence[Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """Run; each thread has a request of its own, which holds its last results."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer(dict(enumerate(map(_as_array, given))), share_inputs=True, share_outputs=True)
        return [torch.from_numpy(request.get_output_tensor(self._places[name]).data.copy()) for name in outputs]


def _as_array(values: Tensor) -> Any:
    return values.contiguous().numpy()


class CompiledEngine:
    """What a compiler of torch's makes of a model with its further outputs.

    Args:
        module: gives the outputs.
        names: of these.
        compiler: makes a faster module of a module: `torch.compile`, or what has compiled the model that was loaded.
    """

    part: Part | None = None

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


OPENERS: MappingProxyType[str, Callable[[bytes | Path, int], Session]] = MappingProxyType(
    {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVinoSession}
)
