"""Opens a loaded object as a model of its kind.

| kind | what is loaded | is opened as |
| --- | --- | --- |
| `torchscript` | `torch.jit.ScriptModule` | `programs.torchscript.script.ScriptClassifier` |
| `exported` | `ExportedProgram`, or its `UnflattenedModule` | `programs.exported.ExportedClassifier` |
| `onnx` | `programs.graphs.module.GraphModule`, which `load_graph` reads | `programs.graphs.classifier.GraphClassifier` |
| `eager` | any other `nn.Module`; of a compiled one, the module that was compiled | `eager.EagerClassifier` |
"""

from __future__ import annotations

import copy
import re
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, UnflattenedModule

from camserve.capture.base import Classifier
from camserve.capture.models.calls import find_views
from camserve.capture.models.eager import EagerClassifier
from camserve.capture.models.frozen import freeze, run_eagerly
from camserve.capture.models.passes import fit_batch
from camserve.capture.models.programs.exported import ExportedClassifier, restore_program
from camserve.capture.models.programs.graphs.classifier import GraphClassifier
from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.models.programs.torchscript.script import ScriptClassifier
from camserve.capture.survey.layers import MODEL_ERRORS, Survey
from camserve.core.errors import ConfigError


def open_model(model: object, pictures: Tensor) -> Classifier:
    """Open a model of any kind, and freeze its parameters.

    Args:
        model: a loaded object of one of the kinds above.
        pictures: `[N, 3, H, W]`, N at least 2, on the model's device, to try it on.

    Raises:
        ConfigError: it is of no such kind, or does not run on these pictures.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, ExportedProgram):
        model = restore_program(model, pictures.device)
    if type(model).__module__.startswith("onnxruntime."):
        raise ConfigError(NO_SESSION)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a model of the type {type(model).__name__} has no layers that could be explained; {ACCEPTED}")
    if isinstance(model, torch.fx.GraphModule) and _called_modules(model) <= {"_guards_fn"}:
        raise ConfigError(f"this graph has no layers: take the exported program itself, not its module(); {ACCEPTED}")
    try:
        if isinstance(model, torch.jit.ScriptModule):
            freeze(model)
            return ScriptClassifier(model, pictures)
        if isinstance(model, UnflattenedModule):
            model.requires_grad_(requires_grad=False)
            return ExportedClassifier(model, pictures)
        if isinstance(model, GraphModule):
            freeze(model)
            return GraphClassifier(model, pictures)
        freeze(model)
        run_eagerly(model)
        return EagerClassifier(model)
    except MODEL_ERRORS as error:
        raise describe_failure(pictures, error) from error


def _called_modules(graph: torch.fx.GraphModule) -> set[object]:
    """Return the names of the modules that a graph calls. A program's own `module()` calls none, or one that checks its input."""
    return {node.target for node in graph.graph.nodes if node.op == "call_module"}


ACCEPTED = "accepted are eager modules, TorchScript modules (.pt), programs of torch.export (.pt2) and ONNX graphs (.onnx)"

NO_SESSION = (
    "a session of ONNX Runtime has no layers that could be differentiated: give the graph's file, camserve.Model('net.onnx'), or "
    "package that with --onnx net.onnx"
)

DOES_NOT_RUN = "the model does not run on pictures of shape"

WRONG_CHANNELS = (
    r"to have (\d+) channels, but got (\d+) channels",
    r"Expected input at \*args\[0\]\.shape\[1\] to be equal to (\d+), but got (\d+)",
)
"""How a convolution, and a program of torch.export, say how many channels they take, and how many they got."""


WRAP = "wrap it in a module whose forward takes pictures [N, channels, H, W] alone"

ADVICE = MappingProxyType(
    {
        r"weight of size \[\d+, \d+, \d+, \d+, \d+\]|input to conv3d": (
            "it takes volumes or videos, whose maps have depth or time, and camserve explains pictures alone: package a model of "
            "single slices or frames; one that takes them stacked as channels is served with channels: N (--channels N)"
        ),
        r"input to conv1d": "it takes signals, which have no picture that a map could lie on",
        r"missing \d+ required positional arguments?: (.+?)\.?$|missing value for argument ('\w+')": (
            f"it takes further inputs (), and camserve gives it pictures alone: {WRAP} and makes up the others, such as "
            "self.model(x, torch.zeros(len(x), 3))"
        ),
        r"takes 1 positional argument\S* but 2|missing \d+ required keyword-only": (
            f"it takes its pictures by name: {WRAP} and passes them on, such as self.model(pixel_values=x)"
        ),
        r"too many indices for tensor of dimension 4|invalid data type 'str'|has no attribute '(?:keys|items|get)'": (
            f"perhaps it takes a dictionary: {WRAP} and makes the dictionary, such as self.model({{'image': x}})"
        ),
        r"not enough values to unpack \(expected 5, got 4\)|Expected 5 elements in a list but found 4": (
            "it takes several crops of each picture [N, crops, channels, H, W], which have no map in common: package the model "
            "that runs on one crop"
        ),
        r"argument #1 'indices'": "it takes words or indices, which are no pictures",
    }
)
"""What the errors of models say that take something else than pictures, as regular expressions, and what to do."""


def survey_model(model: Classifier, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
    """Survey an opened model with pictures `[N, 3, H, W]`.

    Args:
        token_grid: (rows, columns) of a transformer's tokens, or (rows, columns, others before), where the configuration has it.

    Raises:
        ConfigError: it does not run on such pictures, or gives no row of scores for each; or `token_grid` fits no layer.
    """
    try:
        return find_views(model, pictures, model.survey(pictures, token_grid))
    except MODEL_ERRORS as error:
        raise describe_failure(pictures, error) from error


def describe_failure(pictures: Tensor, error: Exception) -> ConfigError:
    """Make the error of a model that does not run on pictures `[N, 3, H, W]`, with what to do where that is known."""
    if isinstance(error, ConfigError):
        return error
    return ConfigError(f"{DOES_NOT_RUN} {list(pictures.shape)}: {summarize_error(error)}{_advise(pictures, error)}")


def _advise(pictures: Tensor, error: Exception) -> str:
    """Say what to do where the fault is known; "" elsewhere."""
    for pattern, advice in ADVICE.items():
        match = re.search(pattern, str(error))
        if match:
            names = [name for name in match.groups() if name]
            return f"; {advice.replace('()', '(' + ', '.join(names) + ')')}"
    return _advise_on_channels(pictures, error)


def _advise_on_channels(pictures: Tensor, error: Exception) -> str:
    """Say what to do where the model takes another number of channels than camserve gives; "" where that is not the fault."""
    match = next((match for pattern in WRONG_CHANNELS if (match := re.search(pattern, str(error)))), None)
    if match is None or int(match[2]) != pictures.shape[1]:
        return ""
    expected, given = match[1], match[2]
    channels = "1 channel" if expected == "1" else f"{expected} channels"
    what = {"1": "grey", "3": "RGB"}.get(expected, "tensors of so many channels, for pictures have 1 or 3")
    return f"; it takes {channels}, and was given {given}; channels: {expected} (--channels {expected}) feeds it {what}"


def summarize_error(error: Exception) -> str:
    """Return the first two lines of an exception's message as one; of a TorchScript traceback the last line, which says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript interpreter" in lines[0]:
        return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])
    return " ".join(lines[:2]).partition(". If you meant for this dimension to be dynamic")[0] or type(error).__name__


def copy_exactly(model: EagerClassifier, pictures: Tensor) -> EagerClassifier:
    """Return a copy in float32, for trials, of a model whose weights are all of half precision; the model itself, of any other.

    On a CPU convolutions in half precision take many times as long, and trials compare scores. A model that does not run in
    float32 (its own code converts values) is tried as it is, as is one that cannot be copied.

    Args:
        pictures: `[N, C, H, W]` to run it on.
    """
    floating = [each.dtype for each in model.module.parameters() if each.is_floating_point()]
    if not floating or not set(floating) <= {torch.float16, torch.bfloat16} or pictures.device.type != "cpu":
        return model
    try:
        exact = EagerClassifier(copy.deepcopy(model.module).float())
        exact.reader, exact.batch = model.reader, model.batch
        exact.read_logits(fit_batch(pictures, exact.batch))
    except MODEL_ERRORS:
        return model
    return exact
