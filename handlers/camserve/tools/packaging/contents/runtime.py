"""The runtime that an archive records, and its graph: chosen on this machine, on photographs too."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from camserve.capture.backend import Backend, open_backend
from camserve.capture.runtimes.agreement import find_faults
from camserve.capture.runtimes.capture import RuntimeCapture
from camserve.capture.runtimes.engines import ENGINES, is_installed
from camserve.capture.runtimes.graph import BEHIND, GRAPH
from camserve.capture.runtimes.packages import FILES, PACKAGE
from camserve.capture.survey.layout import synthesize_pictures
from camserve.core.config import Config
from camserve.core.text import join_names
from camserve.explain.methods import draw_with
from camserve.pictures.preprocess import Preprocess
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.demo import examples_folder
from camserve.tools.packaging.models.source import ModelSource


@dataclass(frozen=True)
class Chosen:
    """What the archive records as `runtime`, and what the user should hear."""

    runtime: str
    notes: tuple[str, ...]


def choose_runtime(
    source: ModelSource, config: Config, backend: Backend, size: tuple[int, int], stage: Path, *, asked: bool
) -> Chosen:
    """Open a copy of the model in the runtime that the configuration names, or in each that is installed, and compare.

    Args:
        config: with the layers and the memory format that are recorded.
        backend: the model as it was probed.
        stage: a folder of files that the archive will hold, where the graph is put.
        asked: whether the user has asked for this runtime now; an old archive's may be lost, with a note.

    Raises:
        ToolError: the runtime that was asked for cannot be had.
    """
    graph = stage / GRAPH
    if config.runtime == "auto" and not any(map(is_installed, ENGINES)):
        extras = join_names([f"camserve[{name}]" for name in ENGINES])
        return Chosen("torch", (f"Runtime: torch, for no other is installed here (pip install '{extras}')",))
    try:
        model = copy.deepcopy(source.model)
    except Exception as error:
        raise ToolError(f"--runtime {config.runtime}: the model cannot be copied, to try it; --runtime torch") from error
    config = replace(config, layers=backend.layers)
    made = open_backend(
        model, config, size, torch.device("cpu"), tune=True, classes=backend.outputs, graph=graph, draw=draw_with(config.method)
    )
    fault = made.runtime.why or _compare(made, config, size)
    if fault and config.runtime != "auto":
        _remove(stage, FILES)
        if asked:
            raise ToolError(f"--runtime {config.runtime} cannot be had: {fault}; --runtime torch does without")
        return Chosen("torch", (f"Warning: the archive's runtime is lost, torch runs instead: {fault}",))
    name = "torch" if fault and made.runtime.name != "torch" and not made.runtime.why else made.runtime.name
    if name not in ENGINES:
        _remove(stage, (GRAPH, BEHIND))
    return Chosen(name, (_describe(name, made.runtime.seconds, fault, graph), *_describe_layers(made, name)))


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def record_graph(config: Config, backend: Backend, size: tuple[int, int], *, asked: bool) -> Chosen:
    """Say which runtime runs a model that came as an ONNX graph, after it has been compared with torch.

    Args:
        backend: the graph as it was opened.
        asked: whether the user has asked for a runtime now.

    Raises:
        ToolError: the runtime that was asked for cannot be had, or the graph gives other answers than its operators.
    """
    runtime = backend.runtime
    if asked and config.runtime not in ("auto", runtime.name):
        raise ToolError(f"--runtime {config.runtime} cannot be had: {runtime.why}; --runtime onnxruntime does without")
    fault = _compare(backend, config, size)
    if fault:
        raise ToolError(f"the graph cannot be explained: {fault}")
    version = f"{runtime.name} {runtime.version}"
    told = (
        f"Runtime: {version} runs the graph, with its layers as further outputs; it answers as torch does that computes the same"
    )
    return Chosen(runtime.name, (told, *([f"Warning: {runtime.why}"] if runtime.why else [])))


def _compare(made: Backend, config: Config, size: tuple[int, int]) -> str:
    """Compare the runtime with torch on photographs and other pictures; return what differs, "" where nothing does."""
    if not isinstance(made.capture, RuntimeCapture):
        return ""
    pictures = [*_photographs(config, size), *synthesize_pictures(size, 3, seed=2, config=config)][:3]
    given, draw = torch.stack(pictures), draw_with(config.method)
    faults = find_faults(
        made.capture.inner, made.capture, given, made.runtime.layers, reader=made.reader, draw=draw, within=made.runtime.within
    )
    return "; ".join(f"{made.runtime.name}: {f'layer {layer}: ' if layer else ''}{fault}" for layer, fault in faults.items())


def _photographs(config: Config, size: tuple[int, int]) -> list[Tensor]:
    """Return a photograph and its mirror image as the model's input; none where pictures are prepared in another way."""
    path = examples_folder() / "cat.jpg"
    if not config.takes_pictures or not path.is_file():
        return []
    steps = Preprocess(config)
    with Image.open(path) as opened:
        picture = opened.convert("L" if config.channels == 1 else "RGB")
    prepared = [steps(each) for each in (picture, ImageOps.mirror(picture))]
    return [each for each in prepared if tuple(each.shape[1:]) == size]


def _describe(name: str, seconds: Mapping[str, float], fault: str, graph: Path) -> str:
    told = f"Runtime: {name}"
    if seconds:
        shares = [f"{each} {took / seconds['torch']:.2f}" for each, took in seconds.items() if each != "torch"]
        processor = torch.backends.cpu.get_cpu_capability()
        told += f", the fastest here ({processor}) with equal answers ({', '.join(shares)} of torch's time), is recorded"
    elif fault:
        told += f": {fault.removeprefix('auto: ')}"  # what cannot be tried at all is said of what was asked for
    if name in ENGINES:
        size = sum(file.stat().st_size for file in (graph, graph.with_name(BEHIND)) if file.is_file()) / 1e6
        told += f"; its graph ({size:.1f} MB) lies in the archive; a worker without {name} runs torch"
    if name == "aot":
        size = graph.with_name(PACKAGE).stat().st_size / 1e6
        told += (
            f"; compiled ahead of time ({size:.1f} MB) for torch {torch.__version__} on this kind of processor "
            f"({torch.backends.cpu.get_cpu_capability()}); a worker on another one runs torch"
        )
    if name == "compile":
        told += "; each worker compiles the model when it loads, which takes long"
    return told


def _describe_layers(made: Backend, name: str) -> tuple[str, ...]:
    """Say which layers the runtime does not give."""
    left = [layer for layer in made.layers if layer not in made.runtime.layers]
    return (f"Explained in torch all the same: {join_names(left)}",) if left and name != "torch" else ()
