"""Capture for programs of `torch.export`: their submodules are restored, and then take the eager modules' hooks."""

from __future__ import annotations

import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten

from camserve.capture.base import Capture, Captured, CaptureSettings
from camserve.capture.models.eager import EagerCapture, EagerClassifier
from camserve.capture.models.frozen import freeze
from camserve.capture.models.hooks import hook_every_call
from camserve.capture.models.passes import SplitCapture, fit_batch
from camserve.capture.models.programs.operators import register_operators
from camserve.capture.survey.builder import SurveyBuilder
from camserve.capture.survey.layers import Site, Survey
from camserve.capture.survey.layout import extract_tensor
from camserve.core.errors import ConfigError

ANY = sys.maxsize - 1
"""An upper bound from here on means that there is none: torch 2.4 writes it so."""

DISPATCHER = "InterpreterModuleDispatcher"
"""torch's class of a module that runs with several graphs and counts its calls; torch 2.4 has no such class."""

REORDERING = ("permute", "transpose", "movedim", "moveaxis", "swap", "einsum", "numpy_T", ".mT", "adjoint", ".t.")
"""Parts of the names of operations that reorder axes. Without any, channels come first in every map, as in the pictures."""

NO_GRAD = (
    "it was exported with torch.no_grad() in its forward, which drops the names of the layers inside; export it without, its "
    "parameters need no gradient anyway"
)

COMPILED = (
    "is a package of AOTInductor: compiled code that gives scores and nothing else, so there is no layer to explain; package the "
    "model that it was compiled from, with --runtime aot, which compiles it with its layers as further outputs"
)

MODE_ERROR = 1e-3
"""Tolerance between a picture's scores in two passes, as a share of the largest score."""


def is_exported(path: str | Path) -> bool:
    """Return whether a file is a program of `torch.export`, not TorchScript. Both are zip files; TorchScript's holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    code = any("/code/" in name for name in names)
    return not code and any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names)


def is_package(path: str | Path) -> bool:
    """Return whether a file is a package of AOTInductor: a zip file of libraries, not of a program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("aotinductor/" in name or name.endswith((".so", ".wrapper.cpp")) for name in file.namelist())


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load a program that `torch.export.save` wrote, as a module with submodules on `device`.

    Raises:
        ConfigError: the file is no such program. A package of AOTInductor is none either: it has no layers.
    """
    if is_package(path):
        raise ConfigError(f"{Path(path).name} {COMPILED}")
    register_operators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of buffers that it made read-only itself
            program = torch.export.load(str(path))
    except Exception as error:
        raise ConfigError(
            f"{Path(path).name} is no program of torch.export that torch {torch.__version__} can read "
            f"({type(error).__name__}); write it with torch.export.save(torch.export.export(model, (pictures,)), ...)"
        ) from error
    return restore_program(program, torch.device(device))


def restore_program(program: ExportedProgram, device: torch.device) -> nn.Module:
    """Restore a program as a module with submodules, on `device`, and freeze its parameters.

    Raises:
        ConfigError: this torch cannot restore its submodules.
    """
    try:
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415 torch 2.4 has no such pass
    except ImportError:
        pass
    else:
        program = move_to_device_pass(program, str(device)) if device.type != "cpu" else program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch uses here what it deprecates itself
            module = unflatten(program).to(device)
    except Exception as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot restore this program's submodules ({type(error).__name__}); a newer torch may, "
            "or take the model as eager weights or as TorchScript"
        ) from error
    freeze(module)
    return module


CHANGING = (
    "the program gives a picture other scores in another pass, or beside other pictures: it was exported in training mode (call "
    "model.eval() before torch.export.export), or it computes over all pictures of a pass (package the model itself, which then "
    "gets one picture at a time)"
)


class ExportedClassifier(EagerClassifier):
    """An exported program's module (`Classifier`).

    It stays in the mode, training or evaluation, in which it was exported. Where it was exported for a fixed number of pictures,
    or for a range, it is always given as many.

    Raises:
        ConfigError: a picture's scores change with the pass, or with the other pictures, as in training mode.
    """

    kind = "exported"

    def __init__(self, module: nn.Module, pictures: Tensor) -> None:
        super().__init__(module)
        self.batch = _batch_of(module)
        self._classes = _classes_of(module)
        self._check_mode(pictures)

    def _check_mode(self, pictures: Tensor) -> None:
        """Refuse training mode: scores change from pass to pass (dropout), or with the other pictures (batch normalisation)."""
        given = fit_batch(pictures, self.batch)
        others = torch.cat([given[:1], -given[1:]])
        with torch.no_grad():
            first, again, mixed = (self.reader.read(self.run(each), len(given)).values for each in (given, given, others))
        scale = first.abs().max()
        if (first - again).abs().max() > MODE_ERROR * scale or (first[0] - mixed[0]).abs().max() > MODE_ERROR * scale:
            raise ConfigError(CHANGING)

    def survey(self, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
        """Run the program and describe every layer that ran. A layer that runs with two graphs has one name."""
        pictures = fit_batch(pictures, self.batch)
        operations = _operations(self.module)
        reordered = any(part in operation for operation in operations for part in REORDERING)
        builder = SurveyBuilder(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid, None if reordered else "nchw")

        def record(name: str, module: nn.Module, output: Any) -> None:
            layer = self.name_of(name)
            self._modules[layer] = tuple(dict.fromkeys((*self._modules.get(layer, ()), name)))
            builder.record(layer, self._classes.get(layer) or self.class_of(module), extract_tensor(output))

        with torch.no_grad(), hook_every_call(self.module, record):
            scores = self.reader.read(self.run(pictures), len(pictures)).logits
        hint = NO_GRAD if any("wrap_with_set_grad_enabled" in operation for operation in operations) else ""
        return builder.build(scores, hint=hint)

    def capture(self, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> Capture:
        """Make a capture at these layers."""
        capture: Capture = EagerCapture(self.module, sites, self.complete(settings), self._modules)
        if any(type(module).__name__ == DISPATCHER for module in self.module.modules()):
            capture = LockedCapture(capture)
        return SplitCapture(capture, *self.batch)

    def name_of(self, path: str) -> str:
        """Return the name of the layer whose module has this path."""
        return _layer_name(path)


def _layer_name(path: str) -> str:
    """Return a layer's name, without the number that torch adds to each call of a module that runs with several graphs."""
    return re.sub(r"@\d+", "", path)


def _operations(module: nn.Module) -> set[str]:
    """Return the names of all operations in the program."""
    graphs: list[Any] = [getattr(each, "graph", None) for each in module.modules()]
    return {str(node.target) for graph in graphs if graph for node in graph.nodes if node.op == "call_function"}


def _classes_of(module: nn.Module) -> dict[str, str]:
    """Return the names of the layers' classes before they were exported, which each operation's metadata holds."""
    graphs: list[Any] = [getattr(each, "graph", None) for each in module.modules()]
    stacks = [node.meta.get("nn_module_stack") or {} for graph in graphs if graph for node in graph.nodes]
    known = {_layer_name(path): kind for stack in stacks for path, kind in stack.values()}
    return {path: str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1] for path, kind in known.items()}


def _batch_of(module: nn.Module) -> tuple[int, int | None]:
    """Return the fewest and most pictures that the program was exported for.

    A least number of 2 means any: `torch.export` specialises on 1, and leaves it out of every range.
    """
    placeholder: Any = module.input_placeholders[0]  # type: ignore[index]
    count = placeholder.meta["val"].shape[0]
    if isinstance(count, int):
        return count, count
    ranges: Any = module.range_constraints
    span = ranges.get(count.node.expr)
    low = int(span.lower) if span else 1
    high = int(span.upper) if span and span.upper.is_Integer and span.upper < ANY else None
    return (low if low > 2 else 1), high


class LockedCapture:
    """A capture that one thread runs at a time (`Capture`): torch counts the calls of some modules on the module itself."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._lock = threading.Lock()

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return self._capture.sites

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model when it is free."""
        with self._lock:
            return self._capture.forward(pictures, layers)
