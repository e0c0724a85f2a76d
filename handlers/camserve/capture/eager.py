"""Capture for eager modules: a forward hook makes the layer's output a leaf, so that only the head has a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, Captured, Setting
from camserve.capture.layers import Site, Survey, Surveyor
from camserve.capture.layout import first_tensor, logits_of, with_first
from camserve.capture.passes import Pass

Keep = Callable[[str, Tensor], Tensor]
"""Takes a layer's name and output, and returns what the head is to go on with."""


class Eager:
    """An eager model (`Capture`).

    The parameters must be frozen (`freeze`): then nothing but the head behind the first asked layer has a graph, and
    grad mode never has to change inside the pass. Hooks live for one pass and belong to the thread that runs it.

    Args:
        model: in eval mode, parameters frozen.
        sites: the layers that may be asked for.
        setting: how to run it.
        modules: the modules of layers that go by another name.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        setting: Setting | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self._model = model
        self._sites = dict(sites)
        self._setting = setting or Setting({})
        self._modules = modules or {}
        self._dtype = dtype_of(model.parameters())

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        heads = self._setting.heads_for(pictures)
        context = self._setting.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = pictures.to(self._dtype) if self._dtype else pictures
            if not asked:
                with torch.no_grad():
                    return Pass({}, {}, {}, {}, logits_of(self._setting.predicted(self._model, pictures)))
            kept = _Kept(heads)
            closed = all(layer in heads for layer in asked)
            with torch.set_grad_enabled(not closed), hooked(self._model, asked, kept, self._modules):
                scores = logits_of(self._model(pictures))
            return Pass(asked, heads, kept.activations, kept.sources, scores)


class _Kept:
    """Keeps layers' outputs as a pass goes on.

    The head gets a copy: an in-place operation behind the layer then changes neither the activation nor a leaf.
    """

    def __init__(self, heads: Mapping[str, Tensor]) -> None:
        self.activations: dict[str, Tensor] = {}
        self.sources: dict[str, Tensor] = {}
        self._heads = heads

    def __call__(self, layer: str, output: Tensor) -> Tensor:
        if layer not in self._heads:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            self.sources[layer] = output
        self.activations[layer] = output.detach()
        return output.clone()


@contextmanager
def hooked(model: nn.Module, sites: Mapping[str, Site], keep: Keep, modules: Mapping[str, str] | None = None) -> Iterator[None]:
    """Calls `keep` at the last call of each layer, in this thread only; the hooks are gone afterwards.

    Raises:
        RuntimeError: a layer ran another number of times than when it was surveyed.
    """
    names = modules or {}
    hooks = [_LastCall(site, keep) for site in sites.values()]
    handles = []
    try:
        for hook in hooks:
            module = model.get_submodule(names.get(hook.site.layer, hook.site.layer))
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
    for hook in hooks:
        hook.check()


class _LastCall:
    """A forward hook that acts at the call that was the last one when the layer was surveyed."""

    def __init__(self, site: Site, keep: Keep) -> None:
        self.site = site
        self._keep = keep
        self._thread = threading.get_ident()
        self._calls = 0

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        self._calls += 1
        tensor = first_tensor(output)
        if self._calls != self.site.calls or tensor is None:
            return None
        return with_first(output, self._keep(self.site.layer, tensor))

    def check(self) -> None:
        if self._calls != self.site.calls:
            raise RuntimeError(
                f"layer {self.site.layer} ran {self._calls} times in this pass, and {self.site.calls} times when the model was "
                "loaded: which call to explain is not known"
            )


class EagerModel:
    """An eager module, in eval mode and with its parameters frozen (`Model`)."""

    kind = "eager"
    batch: tuple[int, int | None] = (1, None)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def survey(self, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
        """Runs the module once and describes every layer that ran."""
        surveyor = Surveyor(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)

        def look(name: str, module: nn.Module, output: Any) -> None:
            surveyor.look(name, self.class_of(module), first_tensor(output))

        with torch.no_grad(), watched(self.module, look):
            scores = logits_of(self.module(self.fed(pictures)))
        return surveyor.found(scores)

    def fed(self, pictures: Tensor) -> Tensor:
        """The pictures in the type of the weights."""
        return pictures.to(dtype_of(self.weights()) or pictures.dtype)

    def class_of(self, module: nn.Module) -> str:
        """The name of a module's class."""
        return type(module).__name__

    def capture(self, sites: Mapping[str, Site], setting: Setting | None = None) -> Capture:
        """A capture at these layers."""
        return Eager(self.module, sites, setting)

    def replaced(self, site: Site, pictures: Tensor, values: Tensor) -> Tensor:
        """The scores where the layer's output is `values` instead."""
        with torch.no_grad(), hooked(self.module, {site.layer: site}, lambda _, output: values.to(output, copy=True)):
            return logits_of(self.module(self.fed(pictures)))

    def weights(self) -> Iterable[Tensor]:
        """The module's parameters."""
        return self.module.parameters()


@contextmanager
def watched(model: nn.Module, look: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Shows `look` the name, the module and the output of every call of a submodule."""

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, _inputs, output: look(name, module, output)

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dtype_of(weights: Iterable[Tensor]) -> torch.dtype | None:
    """The type of the first floating weight, which is what the model takes pictures in; None: it has none."""
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def freeze(model: nn.Module) -> None:
    """Eval mode, and no parameter asks for a gradient."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
