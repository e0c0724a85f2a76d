"""Folds batch normalisation into the convolution before it: the same function, and one pass over each activation less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.precision import cast_input, disable_tf32
from camserve.capture.survey.layout import extract_tensor
from camserve.capture.survey.reader import FIRST, OutputReader

CLOSE = 1e-5
"""Tolerance between a folded convolution's output and the normalised one, as a share of the largest value."""

EQUAL = 1e-6
"""Largest change of the whole model's probabilities."""


@dataclass(frozen=True)
class _Pair:
    """A convolution and the normalisation of its output: their names and modules, and the weights that do both."""

    names: tuple[str, str]
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: Tensor
    bias: Tensor


def fold_norms(model: nn.Module, pictures: Tensor, layers: Collection[str], reader: OutputReader = FIRST) -> int:
    """Fold batch normalisation into convolutions, in place, where a trial shows no difference.

    A run of the model shows which normalisation takes a convolution's output; names never do. Each pair is compared on its own
    input from that run. The modules keep their names: a folded normalisation becomes `nn.Identity`. Then the whole model is
    compared. Where its probabilities change by more than `EQUAL`, or the activation of one of `layers` by more than `CLOSE` of
    its largest value, everything is restored.

    Args:
        model: eager, in eval mode, with frozen parameters.
        pictures: `[N, 3, H, W]` to try it on.
        layers: layers whose outputs must not change.
        reader: how the model's scores are read.

    Returns:
        How many normalisations were folded.
    """
    modules = dict(model.named_modules())
    with torch.no_grad(), disable_tf32():
        pairs, before = _find_pairs(model, modules, pictures, layers, reader)
        originals = [_fold(modules, pair) for pair in pairs]
        if pairs and not _alike(before, _run(model, modules, pictures, layers, reader)):
            for pair, (weight, bias) in zip(pairs, originals, strict=True):
                _put(modules, pair, weight, bias, pair.norm)
            return 0
    return len(pairs)


def _find_pairs(
    model: nn.Module, modules: dict[str, nn.Module], pictures: Tensor, layers: Collection[str], reader: OutputReader
) -> tuple[list[_Pair], list[Tensor]]:
    """Return the pairs, and what `_run` gives before anything is folded."""
    finder = _Finder(model, modules, layers)
    with ExitStack() as stack:
        for name, module in finder.candidates():
            stack.enter_context(_hook(module, lambda own, given, output, name=name: finder.record(name, own, given, output)))
        before = _run(model, modules, pictures, layers, reader)
    return finder.pairs(), before


class _Finder:
    """Finds, in a run, the convolutions whose output is the input of the very next call, a normalisation."""

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module], layers: Collection[str]) -> None:
        self._modules = modules
        self._layers = layers
        self._names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._owners = Counter(
            id(weight) for module in model.modules() for weight in module.parameters(recurse=False) if weight is not None
        )
        self._calls: Counter[str] = Counter()
        self._last: tuple[str, nn.Conv2d, Tensor, Tensor, int] | None = None
        self._pairs: list[_Pair] = []

    def candidates(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that may be half of a pair: with a single name, without hooks, and without shared weights."""
        for name, module in self._modules.items():
            free = self._names[module] == 1 and not module._forward_hooks and not module._forward_pre_hooks
            if free and (isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and self._owns(module))):
                yield name, module

    def _owns(self, conv: nn.Conv2d) -> bool:
        weights = list(conv.parameters(recurse=False))
        own = "weight" in conv._parameters and all(self._owners[id(weight)] == 1 for weight in weights)
        return own and conv.weight.dtype in (torch.float32, torch.float64)

    def record(self, name: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        """Record one call of a candidate: its input and output, of any shape."""
        self._calls[name] += 1
        last, self._last = self._last, None
        if isinstance(module, nn.Conv2d):
            self._last = name, module, given, output, output._version
        elif isinstance(module, nn.BatchNorm2d) and last is not None:
            conv_name, conv, conv_given, conv_output, version = last
            if given is conv_output and version == conv_output._version and not self._ends_between(conv_name, name):
                self._try((conv_name, name), conv, module, conv_given, output)

    def _ends_between(self, conv: str, norm: str) -> bool:
        """Return whether one of the layers ends between the two: its output would change."""
        return any(conv == layer or (conv.startswith(f"{layer}.") and not norm.startswith(f"{layer}.")) for layer in self._layers)

    def _try(self, names: tuple[str, str], conv: nn.Conv2d, norm: nn.BatchNorm2d, given: Tensor, output: Tensor) -> None:
        weights = _folded_weights(conv, norm)
        if weights is None:
            return
        pair = _Pair(names, conv, norm, *weights)
        old = _set(conv, pair.weight, pair.bias)
        folded = conv.forward(given)
        _set(conv, *old)
        if _close(folded, output):
            self._pairs.append(pair)

    def pairs(self) -> list[_Pair]:
        """Return the pairs whose modules ran once each."""
        return [pair for pair in self._pairs if all(self._calls[name] == 1 for name in pair.names)]


def _folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor] | None:
    """Compute, in float64, the weight and the bias that do both; None where normalisation uses the batch's own statistics."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        return None
    scale = (variance.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = -mean.double() if conv.bias is None else conv.bias.double() - mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    return weight.to(conv.weight), bias.to(conv.weight)


def _fold(modules: dict[str, nn.Module], pair: _Pair) -> tuple[Tensor, Tensor | None]:
    """Fold a pair, and return the convolution's own weight and bias."""
    old = pair.conv.weight.detach(), None if pair.conv.bias is None else pair.conv.bias.detach()
    _put(modules, pair, pair.weight, pair.bias, nn.Identity())
    return old


def _put(modules: dict[str, nn.Module], pair: _Pair, weight: Tensor, bias: Tensor | None, norm: nn.Module) -> None:
    parent, _, name = pair.names[1].rpartition(".")
    _set(pair.conv, weight, bias)
    setattr(modules[parent], name, norm.eval())


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Give a convolution other weights, and return those that it had."""
    old = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return old


def _run(
    model: nn.Module, modules: dict[str, nn.Module], pictures: Tensor, layers: Collection[str], reader: OutputReader
) -> list[Tensor]:
    """Return the model's probabilities `[N, K]`, then the outputs of `layers`."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        tensor = extract_tensor(output)
        if tensor is not None:
            outputs[name] = tensor.clone()

    with ExitStack() as stack:
        for layer in filter(modules.__contains__, layers):
            module = model.get_submodule(layer)
            handle = module.register_forward_hook(lambda _own, _given, output, layer=layer: keep(layer, output))
            stack.callback(handle.remove)
        scores = reader.compare(model(cast_input(model, pictures)), len(pictures))
    return [scores, *(outputs[layer] for layer in sorted(outputs))]


def _hook(module: nn.Module, record: Any) -> ExitStack:
    """Context manager that calls `record` with the module, its input and its output at every call."""

    def hook(own: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            record(own, inputs[0], output)
        else:
            record(own, torch.empty(0), torch.empty(0))

    stack = ExitStack()
    stack.callback(module.register_forward_hook(hook).remove)
    return stack


def _alike(before: list[Tensor], after: list[Tensor]) -> bool:
    change = (before[0] - after[0]).abs().max()
    return bool(change <= EQUAL) and all(_close(new, old) for old, new in zip(before[1:], after[1:], strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are equal but for rounding; never where one of them is not finite."""
    return one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * other.abs().max())
