"""Loads a model from the user's files: a Python file that defines it and its weights, or a whole program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camserve.capture import is_exported, load_exported, load_graph
from camserve.capture.models.programs.exported import COMPILED, is_package
from camserve.capture.models.programs.graphs.file import join_files
from camserve.tools.archive.fresh.modules import Beside, server_modules
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import check_module_name
from camserve.tools.packaging.models.builders import Builder, find_builders, import_file, list_classes
from camserve.tools.packaging.models.checkpoints import StateDict, read_state_dict
from camserve.tools.packaging.models.libraries.own import Own, describe_own
from camserve.tools.packaging.models.libraries.transformers_models import load_as_transformers
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.models.weights import load_into

TEMPLATE = '''\
"""Builds the model of {module}.py, without weights; TorchServe then loads the archive's into it."""

import {module}


class Model:
    """What {module}.py defines."""

    def __new__(cls):
        """The module."""
        return {module}.{name}({arguments})
'''
"""TorchServe takes a file that defines exactly one class, which is built without arguments."""


def load_model_file(
    model_file: Path,
    weights: Path,
    staging: Path,
    *,
    workdir: Path | None = None,
    weights_key: str | None = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    describe: bool = True,
) -> ModelSource:
    """Loads a Python file of the user's that defines the model, and its weights.

    A file that defines exactly one class, which is built without arguments, is taken as it is, as TorchServe's stock handlers
    do. Otherwise a file that builds the model from it is written into `workdir`, which by default is `staging`.

    Args:
        staging: holds further files that it may import.
        weights_key: which entry of a checkpoint is used.
        name: the class, or the function that builds the model. None: the only one that is no part of another; of several, the
            only one that the weights fit.
        arguments: what it is called with.
        describe: take what a module of timm's or transformers' says of labels and preparation; not where a handler has its own.

    Raises:
        ToolError: the file, its class or the weights cannot be used, or nothing tells which class is the model.
    """
    if not model_file.is_file():
        raise ToolError(f"no file {model_file}")
    check_module_name(model_file.stem, model_file)
    state, notes = read_state_dict(weights, weights_key)
    with Beside([staging, model_file.resolve().parent], server_modules()):
        module = import_file(model_file)
        builders = find_builders(module, model_file, name, arguments or {})
        builder, model, more = _choose(builders, state, model_file)
        plain = name is None and not arguments and len(list_classes(module)) == 1 and builder.is_class
    model.eval()
    own = describe_own(model, [weights.resolve().parent, model_file.resolve().parent]) if describe else Own()
    stored, notes = keep_plain(weights, [*notes, *more]), [*notes, *more, *own.notes]
    source = ModelSource(model_file, model, own.keys, own.labels, stored, notes=tuple(notes))
    return source if plain else _write_builder(source, builder, workdir or staging)


def _choose(builders: Sequence[Builder], state: StateDict, model_file: Path) -> tuple[Builder, Any, list[str]]:
    """The one builder, or of several the only one that the weights fit, its model with the weights, and what is to be said."""
    if len(builders) == 1:
        (builder,) = builders
        model = builder.build(model_file)
        said = [f"{model_file.name}: the model is {builder.name}, {builder.why}"] if builder.why else []
        return builder, model, [*said, *_load(model, state, builder.name)]
    fitting: list[tuple[Builder, Any, list[str]]] = []
    for builder in builders:
        try:
            model = builder.build(model_file)
            fitting.append((builder, model, _load(model, state, builder.name)))
        except ToolError:
            continue
    names = ", ".join(each.name for each in builders)
    if len(fitting) != 1:
        fits = f"; the weights fit {', '.join(each.name for each, *_ in fitting) or 'none of them'}"
        raise ToolError(
            f"{model_file} defines {names}, and nothing tells which is the model{fits}; --class {builders[0].name} chooses one"
        )
    builder, model, notes = fitting[0]
    return (
        builder,
        model,
        [f"{model_file.name}: the model is {builder.name}, the only one of {names} that the weights fit", *notes],
    )


def _load(model: nn.Module, state: StateDict, kind: str) -> list[str]:
    """Loads weights by their own names, or by those under which transformers saves them."""
    try:
        return load_into(model, state, kind)
    except ToolError:
        if not load_as_transformers(model, state):
            raise
        return ["the weights' names are those that transformers saves; they were loaded as it does"]


def _write_builder(source: ModelSource, builder: Builder, folder: Path) -> ModelSource:
    """Writes the file that builds the model from the user's, which becomes a module that it imports."""
    if source.model_file is None:
        raise ToolError("a whole program has no class to build")
    module = source.model_file.stem
    path = folder / f"model_of_{module}.py"
    arguments = f"**{dict(builder.arguments)!r}" if builder.arguments else ""
    path.write_text(TEMPLATE.format(module=module, name=builder.name, arguments=arguments), "utf-8")
    return replace(source, model_file=path, beside=source.model_file.resolve().parent)


def load_program(path: Path, workdir: Path) -> ModelSource:
    """Loads a file that holds a whole program: TorchScript (`torch.jit.save`), one of `torch.export.save`, or an ONNX graph.

    Args:
        workdir: where a graph is written as one file, if its weights lie beside it.

    Raises:
        ToolError: no file, or none of these.
        ConfigError: a program of torch.export that this torch cannot read, or a graph that cannot be explained.
    """
    if not path.is_file():
        raise ToolError(f"no file {path}")
    if path.suffix == ".onnx":
        return load_onnx(path, workdir)
    if path.suffix == ".so" or is_package(path):
        raise ToolError(f"{path.name} {COMPILED}")
    if is_exported(path):
        return ModelSource(None, load_exported(path), weights=path, generated=True)
    try:
        script = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ToolError(
            f"{path.name} is neither TorchScript (torch.jit.save) nor a program of torch.export (torch.export.save); "
            "a state dict goes with --model-file or --torchvision"
        ) from error
    return ModelSource(None, script, weights=path, generated=True)


def load_onnx(path: Path, workdir: Path) -> ModelSource:
    """Loads a file with an ONNX graph.

    Raises:
        ToolError: no file.
        ConfigError: it is damaged, or cannot be explained.
    """
    if not path.is_file():
        raise ToolError(f"no file {path}")
    joined = join_files(path, workdir)
    notes = () if joined == path else (f"{path.name}: its weights, which lie in files beside it, were put into it",)
    name = f"{path.stem}.onnx"  # by its ending TorchServe knows it
    graph, needs = load_graph(joined), ("onnx", "onnxruntime")
    return ModelSource(None, graph, weights=joined, generated=True, stored_as=name, notes=notes, requires=needs)


def keep_plain(weights: Path | None, notes: Sequence[str]) -> Path | None:
    """Returns the file, if nothing had to be taken off (`notes`) to get at its state dict."""
    return None if notes else weights
