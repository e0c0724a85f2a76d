"""Batch normalisation folded into the convolution before it: the same function, and one pass over each activation less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.models.eager import cast_input
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layout import extract_logits, extract_tensor

CLOSE = 1e-5
"""How far a folded convolution's output may be from the normalised one, as a share of its largest value."""

EQUAL = 1e-6
"""How far the whole model's probabilities may move."""


@dataclass(frozen=True)
class _Pair:
    """A convolution and the normalisation of its output: their names and modules, and the weights that stand for both."""

    names: tuple[str, str]
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: Tensor
    bias: Tensor


def fold_norms(model: nn.Module, pictures: Tensor, layers: Collection[str]) -> int:
    """Folds batch normalisation into convolutions, in place, where a trial shows no difference; how many were folded.

    Which normalisation takes a convolution's output is seen in a run of the model, never told from names, and each pair is
    compared on what it was given there. The modules keep their names: a folded normalisation becomes `nn.Identity`. Then the
    whole model is compared, and where its probabilities move by more than 1e-6, or the activation of one of `layers` does by
    as much of its largest value as a pair's may, everything is put back.

    Args:
        model: eager, in eval mode, parameters frozen.
        pictures: `[N, 3, H, W]` to try it on.
        layers: whose outputs must stay what they are.
    """
    modules = dict(model.named_modules())
    with torch.no_grad(), disable_tf32():
        pairs, before = _found(model, modules, pictures, layers)
        undo = [_folded(modules, pair) for pair in pairs]
        if pairs and not _alike(before, _run(model, modules, pictures, layers)):
            for pair, (weight, bias) in zip(pairs, undo, strict=True):
                _put(modules, pair, weight, bias, pair.norm)
            return 0
    return len(pairs)


def _found(
    model: nn.Module, modules: dict[str, nn.Module], pictures: Tensor, layers: Collection[str]
) -> tuple[list[_Pair], list[Tensor]]:
    """The pairs, and what the model gave before anything was folded."""
    finder = _Finder(model, modules, layers)
    with ExitStack() as stack:
        for name, module in finder.candidates():
            stack.enter_context(_hooked(module, lambda own, given, output, name=name: finder.look(name, own, given, output)))
        before = _run(model, modules, pictures, layers)
    return finder.pairs(), before


class _Finder:
    """Watches a run for convolutions whose very next output is normalised."""

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
        """Modules that may be half of a pair: known by one name, and without hooks or weights that others have a hand in."""
        for name, module in self._modules.items():
            free = self._names[module] == 1 and not module._forward_hooks and not module._forward_pre_hooks
            if free and (isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and self._owns(module))):
                yield name, module

    def _owns(self, conv: nn.Conv2d) -> bool:
        weights = list(conv.parameters(recurse=False))
        own = "weight" in conv._parameters and all(self._owners[id(weight)] == 1 for weight in weights)
        return own and conv.weight.dtype in (torch.float32, torch.float64)

    def look(self, name: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        """Takes one call of a candidate."""
        self._calls[name] += 1
        last, self._last = self._last, None
        if isinstance(module, nn.Conv2d):
            self._last = name, module, given, output, output._version
        elif isinstance(module, nn.BatchNorm2d) and last is not None:
            conv_name, conv, taken, made, version = last
            if given is made and version == made._version and not self._shows(conv_name, name):
                self._try((conv_name, name), conv, module, taken, output)

    def _shows(self, conv: str, norm: str) -> bool:
        """Whether a layer ends between the two: its output would change."""
        return any(conv == layer or (conv.startswith(f"{layer}.") and not norm.startswith(f"{layer}.")) for layer in self._layers)

    def _try(self, names: tuple[str, str], conv: nn.Conv2d, norm: nn.BatchNorm2d, given: Tensor, output: Tensor) -> None:
        found = _weights(conv, norm)
        if found is None:
            return
        pair = _Pair(names, conv, norm, *found)
        old = _set(conv, pair.weight, pair.bias)
        folded = conv.forward(given)
        _set(conv, *old)
        if _close(folded, output):
            self._pairs.append(pair)

    def pairs(self) -> list[_Pair]:
        """Those whose modules ran once each."""
        return [pair for pair in self._pairs if all(self._calls[name] == 1 for name in pair.names)]


def _weights(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a convolution that does both, computed in float64; None where statistics are the batch's own."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        return None
    scale = (variance.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = -mean.double() if conv.bias is None else conv.bias.double() - mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    return weight.to(conv.weight), bias.to(conv.weight)


def _folded(modules: dict[str, nn.Module], pair: _Pair) -> tuple[Tensor, Tensor | None]:
    """Folds a pair; returns the convolution's own weight and bias."""
    old = pair.conv.weight.detach(), None if pair.conv.bias is None else pair.conv.bias.detach()
    _put(modules, pair, pair.weight, pair.bias, nn.Identity())
    return old


def _put(modules: dict[str, nn.Module], pair: _Pair, weight: Tensor, bias: Tensor | None, norm: nn.Module) -> None:
    parent, _, name = pair.names[1].rpartition(".")
    _set(pair.conv, weight, bias)
    setattr(modules[parent], name, norm.eval())


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gives a convolution other weights; returns those that it had."""
    old = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return old


def _run(model: nn.Module, modules: dict[str, nn.Module], pictures: Tensor, layers: Collection[str]) -> list[Tensor]:
    """The model's probabilities, then the activations of `layers`."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        tensor = extract_tensor(output)
        if tensor is not None:
            found[name] = tensor.clone()

    with ExitStack() as stack:
        for layer in filter(modules.__contains__, layers):
            module = model.get_submodule(layer)
            handle = module.register_forward_hook(lambda _own, _given, output, layer=layer: keep(layer, output))
            stack.callback(handle.remove)
        scores = extract_logits(model(cast_input(model, pictures)))
    return [scores.double().softmax(1), *(found[layer] for layer in sorted(found))]


def _hooked(module: nn.Module, look: Any) -> ExitStack:
    """Shows `look` the module, its input and its output at every call, while it is open."""

    def hook(own: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            look(own, inputs[0], output)
        else:
            look(own, torch.empty(0), torch.empty(0))

    stack = ExitStack()
    stack.callback(module.register_forward_hook(hook).remove)
    return stack


def _alike(before: list[Tensor], after: list[Tensor]) -> bool:
    moved = (before[0] - after[0]).abs().max()
    return bool(moved <= EQUAL) and all(_close(new, old) for old, new in zip(before[1:], after[1:], strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are equal but for rounding; never where one of them is not finite."""
    return one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * other.abs().max())
