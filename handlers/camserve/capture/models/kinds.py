"""Which kind of model a loaded object is, and what can be said of any kind: its layers, and the one to explain."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, UnflattenedModule

from camserve.capture.base import Classifier
from camserve.capture.models.eager import EagerClassifier, freeze
from camserve.capture.models.exported import ExportedClassifier, restore_program
from camserve.capture.models.torchscript.script import ScriptClassifier
from camserve.capture.survey.layers import MODEL_ERRORS, Survey
from camserve.core.errors import ConfigError


def open_model(model: object, pictures: Tensor) -> Classifier:
    """A model of any kind, with its parameters frozen; one that was compiled is opened as what it was before.

    Args:
        model: an eager module, a TorchScript module, an exported program or its restore_program module.
        pictures: `[N, 3, H, W]`, N at least 2, on the model's device: it is tried with them.

    Raises:
        ConfigError: it is none of these, or does not run on such pictures.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, ExportedProgram):
        model = restore_program(model, pictures.device)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a model of the type {type(model).__name__} has no layers that could be explained; {ACCEPTED}")
    if isinstance(model, torch.fx.GraphModule) and _called(model) <= {"_guards_fn"}:
        raise ConfigError(f"this graph has no layers: take the exported program itself, not its module(); {ACCEPTED}")
    try:
        if isinstance(model, torch.jit.ScriptModule):
            freeze(model)
            return ScriptClassifier(model, pictures)
        if isinstance(model, UnflattenedModule):
            model.requires_grad_(requires_grad=False)
            return ExportedClassifier(model, pictures)
        freeze(model)
        return EagerClassifier(model)
    except MODEL_ERRORS as error:
        raise _does_not_run(pictures, error) from error


def _called(graph: torch.fx.GraphModule) -> set[object]:
    """Names of the modules that a graph calls; a program's own `module()` calls none, or one that checks its input."""
    return {node.target for node in graph.graph.nodes if node.op == "call_module"}


ACCEPTED = "accepted are eager modules, TorchScript modules (.pt) and programs of torch.export (.pt2)"

DOES_NOT_RUN = "the model does not run on pictures of shape"

CHANNELS = (
    r"to have (\d+) channels, but got (\d+) channels",
    r"Expected input at \*args\[0\]\.shape\[1\] to be equal to (\d+), but got (\d+)",
)
"""How a convolution, and a program of torch.export, says how many channels it wants, and how many came."""


def survey_model(model: Classifier, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
    """The survey of an opened model.

    Raises:
        ConfigError: it does not run on such pictures, or gives no row of scores for each; or no layer takes `token_grid`.
    """
    try:
        return model.survey(pictures, token_grid)
    except MODEL_ERRORS as error:
        raise _does_not_run(pictures, error) from error


def _does_not_run(pictures: Tensor, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    return ConfigError(f"{DOES_NOT_RUN} {list(pictures.shape)}: {summarize_error(error)}{_of_channels(pictures, error)}")


def _of_channels(pictures: Tensor, error: Exception) -> str:
    """What to do where the first convolution, or the program, wants another number of channels than camserve gives; else ""."""
    found = next((found for pattern in CHANNELS if (found := re.search(pattern, str(error)))), None)
    if found is None or int(found[2]) != pictures.shape[1]:
        return ""
    wanted = "1 channel" if found[1] == "1" else f"{found[1]} channels"
    ways = {"1": ", self.model(x.mean(1, keepdim=True))", "4": ", such as torch.cat([x, torch.ones_like(x[:, :1])], 1)"}
    return (
        f"; it takes {wanted}, and camserve feeds it RGB pictures; wrap it in a module whose forward makes {found[1]} of the "
        f"{found[2]}{ways.get(found[1], '')}"
    )


def summarize_error(error: Exception) -> str:
    """The first two lines of what an exception says, as one; of a TorchScript program's traceback the last, which says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript interpreter" in lines[0]:
        return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])
    return " ".join(lines[:2]).partition(". If you meant for this dimension to be dynamic")[0] or type(error).__name__
