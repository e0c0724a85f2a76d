"""Chooses what computes the trunk: as it is asked for or recorded, or whatever is fastest; never without a trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, CaptureSettings
from camserve.capture.runtimes.agreement import EQUAL, Draw, Tolerance, draw_plainly, find_faults
from camserve.capture.runtimes.capture import RuntimeCapture
from camserve.capture.runtimes.engines import (
    ENGINES,
    PACKAGES,
    CompiledEngine,
    Engine,
    is_installed,
    open_engine,
    version_of,
)
from camserve.capture.runtimes.graph import BEHIND, export_graph, split_graph
from camserve.capture.runtimes.head import Head
from camserve.capture.runtimes.outputs import Outputs, Place, decides_by_values, find_path
from camserve.capture.runtimes.packages import PACKAGE, PackagedEngine, compile_package
from camserve.capture.survey.layers import Site

logger = logging.getLogger(__name__)

GAIN = 0.9
"""With `auto`, a runtime must take at most this share of torch's time: a smaller gain may be noise."""

ROUNDS = 5
"""How often each candidate explains the pictures, in turns; the fastest counts."""

REFUSED = "camserve: torch runs in place of the runtime %s; answers may differ from another machine's in their last digits"

DECIDES = (
    "the model's code looks at values of the pictures (as `if x.max() > 1:` does), and a graph would go one way for all of them"
)


@dataclass(frozen=True)
class Runtime:
    """What computes the trunk.

    Attributes:
        name: `torch`, `compile`, `aot`, `onnxruntime`, `openvino` or `tensorrt`.
        why: why it is not the one that was asked for; "" where it is.
        layers: those that are explained in it; others are explained in torch.
        version: of its package.
        seconds: with `auto`, what each candidate took for the same pictures.
        within: how far its answers may lie from torch's.
    """

    name: str = "torch"
    why: str = ""
    layers: tuple[str, ...] = ()
    version: str = torch.__version__
    seconds: Mapping[str, float] = field(default_factory=dict)
    within: Tolerance = EQUAL

    @property
    def threads(self) -> bool:
        """Whether it computes in threads of its own, beside torch's."""
        return self.name in PACKAGES


@dataclass(frozen=True)
class Trunk:
    """A model whose trunk a runtime may compute.

    Attributes:
        model: eager, in float32, frozen, in the form in which it runs.
        capture: runs it in torch.
        sites: its layers, the default first.
        settings: how it is run.
        pictures: `[N, C, H, W]`, N at least 3, to try it on.
        graph: the file of the graph; where it does not exist it is written, if one is needed, with what belongs beside it. None:
            all of it is kept in memory.
        compiler: what compiles a module.
        draw: makes the maps that are compared.
    """

    model: nn.Module
    capture: Capture
    sites: Mapping[str, Site]
    settings: CaptureSettings
    pictures: Tensor
    graph: Path | None = None
    compiler: Callable[[Any], Any] = torch.compile
    draw: Draw = draw_plainly

    @cached_property
    def decides(self) -> bool:
        """Whether the model's code decides by values: what runs beside it could go another way."""
        return decides_by_values(self.model, self.pictures[:2])

    @cached_property
    def heads(self) -> dict[str, Head]:
        """The heads of the layers whose gradients have no closed form, where they can be run alone."""
        found = {}
        for layer, site in self.sites.items():
            if layer not in self.settings.cam_weights and not self.decides:
                try:
                    found[layer] = Head(self.model, site, self.pictures, self.settings.reader)
                except Exception as error:  # noqa: BLE001 whatever the model raises: this layer is explained in torch
                    logger.info("camserve: the head behind %s cannot be run alone: %s", layer, _say(error))
        return found

    @cached_property
    def places(self) -> dict[str, Place]:
        """What a runtime gives beside the scores: its name, the module, and which call."""
        given = [site for layer, site in self.sites.items() if layer in self.settings.cam_weights or layer in self.heads]
        places = {key: (site.layer, call) for site in given for call, key in site.keys.items()}
        return places | {side.name: side.place for head in self.heads.values() for side in head.sides}

    @cached_property
    def outputs(self) -> Outputs:
        """The model with these outputs."""
        reader = self.settings.reader
        path = find_path(self.model, self.pictures[:2], reader.path, reader.width)
        return Outputs(self.model, self.places, path)

    @cached_property
    def written(self) -> tuple[bytes | Path, bytes | Path | None]:
        """The graph, and perhaps that of what is behind the layers: what packaging has written, or what is written now."""
        beside = None if self.graph is None else self.graph.with_name(BEHIND)
        if self.graph is not None and beside is not None and self.graph.is_file():
            return self.graph, beside if beside.is_file() else None
        graph = export_graph(self.outputs, list(self.places), self.pictures)
        heads = {name for layer in self.heads for name in self._names(layer)}
        first, behind = (split_graph(graph, heads) if heads else None) or (graph, None)
        if self.graph is None or beside is None:
            return first, behind
        if behind is not None:
            beside.write_bytes(behind)
        self.graph.write_bytes(first)
        return self.graph, None if behind is None else beside

    @cached_property
    def package(self) -> Path:
        """What AOTInductor has compiled: what packaging has written, or what is compiled now.

        Raises:
            RuntimeError: there is no archive that could hold it, or it cannot be compiled.
        """
        if self.graph is None:
            raise RuntimeError("packaging compiles it, into the archive (--runtime aot), and this has none")
        path = self.graph.with_name(PACKAGE)
        if not path.is_file():
            compile_package(self.outputs, self.pictures, path)
        return path

    def open(self, runtime: str) -> RuntimeCapture:
        """Open a runtime, and leave to torch the layers at which it does not agree with torch.

        Raises:
            RuntimeError: in words, why it cannot be used.
        """
        if not is_installed(runtime):
            raise RuntimeError(f"{runtime} is not installed here (pip install 'camserve[{runtime}]')")
        fixed = runtime in (*ENGINES, "aot")
        if fixed and self.pictures.device.type != "cpu":
            raise RuntimeError(f"{runtime} computes on the CPU here, and the model is on {self.pictures.device}")
        try:
            if fixed and self.decides:
                raise RuntimeError(DECIDES)
            opened = self._capture(self._engine(runtime))
            faults = find_faults(self.capture, opened, self.pictures, opened.given, reader=self.settings.reader, draw=self.draw)
        except Exception as error:  # the engine's own exceptions, and what a model raises while it is compiled
            raise RuntimeError(_say(error)) from error
        if "" in faults:
            raise RuntimeError(f"its answers are not torch's: {faults['']}")
        for layer, fault in faults.items():
            logger.warning("camserve: layer %s is explained in torch, for %s gives another answer: %s", layer, runtime, fault)
        return replace(opened, given={layer: site for layer, site in opened.given.items() if layer not in faults})

    def _engine(self, runtime: str) -> Engine:
        if runtime == "compile":
            return CompiledEngine(self.outputs, list(self.places), self.compiler)
        if runtime == "aot":
            return PackagedEngine(self.package, list(self.places))
        graph, behind = self.written
        return open_engine(runtime, graph, torch.get_num_threads(), behind)

    def _capture(self, engine: Engine) -> RuntimeCapture:
        given = {layer: site for layer, site in self.sites.items() if self._is_given(layer, engine)}
        for layer in self.sites.keys() - given.keys():
            logger.info("camserve: layer %s is explained in torch: the runtime's graph does not give what it takes", layer)
        return RuntimeCapture(self.capture, engine, given, self.heads, self.settings, tuple(self.pictures.shape[1:]))

    def _names(self, layer: str) -> set[str]:
        """Return the names of a layer's outputs, and of those that its head takes beside them."""
        return {
            *self.sites[layer].keys.values(),
            *(side.name for side in (self.heads[layer].sides if layer in self.heads else ())),
        }

    def _is_given(self, layer: str, engine: Engine) -> bool:
        return (layer in self.settings.cam_weights or layer in self.heads) and self._names(layer) <= engine.names


def open_runtime(asked: str, trunk: Trunk) -> tuple[Capture, Runtime]:
    """Open the runtime that is asked for or recorded; of `auto`, the fastest one that is installed and agrees with torch.

    Where it cannot be used, torch runs, and the log has one line that says why. `auto` does not try `compile`, which takes tens
    of seconds whenever a worker loads.
    """
    if asked == "torch":
        return trunk.capture, Runtime()
    opened: dict[str, RuntimeCapture] = {}
    faults: dict[str, str] = {}
    for name in ENGINES if asked == "auto" else (asked,):
        if asked == "auto" and not is_installed(name):
            continue
        try:
            opened[name] = trunk.open(name)
        except RuntimeError as error:
            faults[name] = str(error)
    why = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    if why:
        logger.warning(REFUSED, why)
    seconds: dict[str, float] = {}
    if asked == "auto" and opened:
        layer = next(iter(trunk.sites))
        seconds = measure({"torch": trunk.capture, **opened}, trunk.pictures, layer)
        best = min(seconds, key=lambda name: seconds[name])
        best = best if best != "torch" and seconds[best] <= GAIN * seconds["torch"] else "torch"
        opened = {best: opened[best]} if best in opened else {}
    for name, capture in opened.items():
        return capture, Runtime(name, "", tuple(capture.given), version_of(name), seconds)
    return trunk.capture, Runtime(why=why, seconds=seconds)


def refuse_runtime(asked: str, why: str) -> Runtime:
    """Say in the log, and in the result, why torch runs in place of the runtime that was asked for."""
    logger.warning(REFUSED, f"{asked}: {why}")
    return Runtime(why=f"{asked}: {why}")


def measure(captures: Mapping[str, Capture], pictures: Tensor, layer: str) -> dict[str, float]:
    """Return how many seconds each capture takes to explain pictures `[N, C, H, W]` at a layer, in turns; the fastest of some."""
    seconds: dict[str, list[float]] = {name: [] for name in captures}
    rows = torch.arange(len(pictures), device=pictures.device)
    for _ in range(ROUNDS + 1):
        for name, capture in captures.items():
            start = time.perf_counter()
            captured = capture.forward(pictures, [layer])
            captured.gradients(layer, rows, captured.logits.argmax(1)).sum().item()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(each[1:]) for name, each in seconds.items()}


def _say(error: Exception) -> str:
    """Return an exception's message as one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
