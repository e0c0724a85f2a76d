"""Loads a model from the user's files: a Python file with a class and its weights, or a whole program."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from camserve.capture import is_exported, load_exported
from camserve.core.text import in_one_line
from camserve.tools.archive.fresh.modules import Beside, server_modules
from camserve.tools.archive.fresh.worker import model_class
from camserve.tools.console import ToolError
from camserve.tools.packaging.contents.names import check_module_name
from camserve.tools.packaging.models.checkpoints import read_state_dict
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.models.weights import load_into


def load_model_file(model_file: Path, weights: Path, staging: Path, weights_key: str | None = None) -> ModelSource:
    """Loads a file of the user's that defines one class without arguments, as TorchServe's stock handlers take it.

    `staging` holds further files that it may import; `weights_key` says which entry of a checkpoint is used.

    Raises:
        ToolError: the file, its class or the weights cannot be used.
    """
    if not model_file.is_file():
        raise ToolError(f"no file {model_file}")
    check_module_name(model_file.stem, model_file)
    with Beside([staging, model_file.resolve().parent], server_modules()):
        try:
            network = model_class(model_file.stem)
        except Exception as error:
            raise ToolError(f"{model_file} does not load: {in_one_line(error)}") from error
        model = _build(network, model_file)
    state, notes = read_state_dict(weights, weights_key)
    notes += load_into(model, state, network.__name__)
    return ModelSource(model_file, model.eval(), weights=keep_plain(weights, notes), notes=tuple(notes))


def load_program(path: Path) -> ModelSource:
    """Loads a file that holds a whole program: TorchScript (`torch.jit.save`) or one of `torch.export.save`.

    Raises:
        ToolError: no file, or neither.
        ConfigError: a program of torch.export that this torch cannot read.
    """
    if not path.is_file():
        raise ToolError(f"no file {path}")
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


def keep_plain(weights: Path | None, notes: Sequence[str]) -> Path | None:
    """Returns the file, if nothing had to be taken off (`notes`) to get at its state dict."""
    return None if notes else weights


def _build(network: type, model_file: Path) -> nn.Module:
    try:
        model = network()
    except Exception as error:
        signature = inspect.signature(network)
        raise ToolError(
            f"{model_file}: {network.__name__}() failed, and TorchServe calls it so, without arguments ({network.__name__}"
            f"{signature}): {in_one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ToolError(f"{model_file}: {network.__name__}() gives a {type(model).__name__}, not a torch.nn.Module")
    return model
