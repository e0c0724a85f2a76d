"""Capture for eager modules: a forward hook makes the layer's output a leaf, so that only the head has a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Captured, Site
from camserve.capture.layout import first_tensor, logits_of, with_first


class EagerPass:
    """One forward pass of an eager model (`Captured`)."""

    def __init__(self, sites: Mapping[str, Site], heads: Mapping[str, Tensor]) -> None:
        self._sites = sites
        self._heads = heads
        self._outputs: dict[str, Tensor] = {}
        self._scores = torch.empty(0)

    @property
    def logits(self) -> Tensor:
        """`[N, K]`, float32."""
        return self._scores.detach().float()

    def activation(self, layer: str) -> Tensor:
        """`[N, C, h, w]`, without a graph."""
        return self._sites[layer].layout.grid(self._outputs[layer].detach())

    def gradients(self, layer: str, rows: Tensor, targets: Tensor) -> Tensor:
        """`[M, C, h, w]` by autograd over the head, or `[M, C, 1, 1]` in closed form where the head is pooled and linear."""
        if layer in self._heads:
            height, width = self.activation(layer).shape[2:]
            return self._heads[layer][targets][:, :, None, None] / (height * width)
        seed = torch.zeros_like(self._scores)
        seed[rows, targets] = 1
        (gradient,) = torch.autograd.grad(self._scores, self._outputs[layer], seed, retain_graph=True)
        return self._sites[layer].layout.grid(gradient)[rows]

    def keep(self, layer: str, output: Tensor) -> Tensor:
        """Keeps a layer's output, and returns what the head is to go on with.

        The head gets a copy: an in-place operation behind the layer then changes neither the activation nor a leaf.
        """
        if layer in self._heads:
            self._outputs[layer] = output.detach()
            return output.clone()
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self._outputs[layer] = output
        return output.clone()

    def finish(self, scores: Tensor) -> EagerPass:
        """Takes the model's scores, and checks that every layer ran and is connected to them."""
        for layer in self._sites:
            if layer not in self._outputs:
                raise RuntimeError(f"layer {layer} ran fewer times than when the model was loaded")
        self._scores = scores
        return self


class Eager:
    """An eager model (`Capture`).

    The parameters must be frozen (`freeze`): then nothing but the head behind the first asked layer has a graph, and
    grad mode never has to change inside the pass. Hooks live for one pass and belong to the thread that runs it.

    Args:
        model: in eval mode, parameters frozen.
        sites: the layers that may be asked for.
        heads: for layers whose head is global average pooling and one linear layer, that layer's weight `[K, C]`.
        predict: what answers a pass without layers; the model itself unless it was compiled.
        context: makes the context manager in which the model runs (autocast).
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        heads: Mapping[str, Tensor] | None = None,
        predict: Callable[[Tensor], Any] | None = None,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._model = model
        self._sites = dict(sites)
        self._heads = dict(heads or {})
        self._predict = predict or model
        self._context = context

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        run = EagerPass(asked, self._heads)
        if not asked:
            with torch.no_grad(), self._context():
                return run.finish(logits_of(self._predict(pictures)))
        graph = torch.no_grad() if all(layer in self._heads for layer in asked) else torch.enable_grad()
        with graph, self._context(), _hooked(self._model, asked, run.keep):
            return run.finish(logits_of(self._model(pictures)))


@contextmanager
def _hooked(model: nn.Module, sites: Mapping[str, Site], keep: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Calls `keep` at the last call of each layer, in this thread only; the hooks are gone afterwards."""
    thread = threading.get_ident()
    handles = []
    try:
        for site in sites.values():
            hook = _last_call_hook(site, thread, keep)
            handles.append(model.get_submodule(site.layer).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_call_hook(site: Site, thread: int, keep: Callable[[str, Tensor], Tensor]) -> Callable[..., Any]:
    calls = 0

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal calls
        if threading.get_ident() != thread:
            return None
        calls += 1
        tensor = first_tensor(output)
        if calls != site.calls or tensor is None:
            return None
        return with_first(output, keep(site.layer, tensor))

    return hook


def freeze(model: nn.Module) -> None:
    """Eval mode, and no parameter asks for a gradient."""
    model.eval()
    model.requires_grad_(requires_grad=False)
