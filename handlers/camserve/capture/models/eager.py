"""Capture for eager modules: a forward hook makes the layer's output a leaf, so that only the head has a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, Captured, CaptureSettings
from camserve.capture.models.hooks import hook_every_call, hook_last_calls, hook_parents
from camserve.capture.models.passes import Pass, copy_saved_tensors
from camserve.capture.survey.layers import Site, Survey, SurveyBuilder, resolve_orders
from camserve.capture.survey.layout import extract_logits, extract_tensor


class EagerCapture:
    """An eager model (`Capture`).

    The parameters must be frozen (`freeze`): then nothing but the head behind the first asked layer has a graph. Hooks live
    for one pass and belong to the thread that runs it.

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
        setting: CaptureSettings | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self._model = model
        self._sites = dict(sites)
        self._setting = setting or CaptureSettings({})
        self._modules = modules or {}
        self._dtype = find_dtype(chain(model.parameters(), model.buffers()))
        self._shared: frozenset[str] = frozenset()

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the model once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        heads = self._setting.cam_weights_for(pictures)
        context = self._setting.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = pictures.to(self._dtype) if self._dtype else pictures
            if not asked:
                with torch.no_grad():
                    answer = self._setting.predict_only(self._model, pictures)
                    return Pass({}, {}, {}, {}, extract_logits(answer, len(pictures)))
            while True:
                kept = _Kept(heads, self._shared)
                scores = self._kept(pictures, asked, kept)
                if kept.written <= self._shared:
                    return Pass(asked, heads, kept.activations, kept.sources, scores, self._setting.scale_of(pictures))
                self._shared |= kept.written  # once in the life of such a model

    def _kept(self, pictures: Tensor, asked: Mapping[str, Site], kept: _Kept) -> Tensor:
        """Runs the model and keeps what the asked layers give; returns the scores."""
        with ExitStack() as stack:
            closed = all(kept.has_closed_form(layer) for layer in asked)
            stack.enter_context(torch.set_grad_enabled(not closed))
            stack.enter_context(hook_last_calls(self._model, asked, kept, self._modules))
            if not self._shared.isdisjoint(asked):
                stack.enter_context(copy_saved_tensors())
            if not closed:
                stack.enter_context(hook_parents(self._model, [self._modules.get(layer, layer) for layer in asked], kept.reopen))
            return extract_logits(self._model(pictures), len(pictures))


class _Kept:
    """Keeps layers' outputs as a pass goes on.

    Where the head is to be differentiated it gets a copy: an in-place operation behind the layer then changes neither the
    activation nor a leaf. A model that goes on to write into the output by another name (that of the layer's input, say) would
    not see this in the copy: such layers are `written`, and once they are known to be `shared`, the leaf is added in place. Where
    the gradients are known without a graph, only a `shared` layer's output is copied.

    A model may run the layer in `torch.no_grad()`. Grad mode then is switched on until that block ends. In `inference_mode` it
    cannot be: the leaf is an ordinary tensor, whose graph starts behind the block.
    """

    def __init__(self, heads: Mapping[str, Tensor], shared: Collection[str] = ()) -> None:
        self.activations: dict[str, Tensor] = {}
        self.sources: dict[str, Tensor] = {}
        self._heads = heads
        self._shared = shared
        self._versions: dict[str, tuple[Tensor, int]] = {}
        self._opened = False

    @property
    def written(self) -> frozenset[str]:
        """The layers into whose outputs something was written after they were kept."""
        return frozenset(layer for layer, (output, version) in self._versions.items() if output._version != version)

    def has_closed_form(self, layer: str) -> bool:
        """Whether the layer's gradients are known without a graph."""
        return layer in self._heads

    def reopen(self) -> None:
        """Switches grad mode on again, where a module that ran a layer without has ended."""
        if self._opened:
            torch.set_grad_enabled(True)

    def __call__(self, layer: str, output: Tensor) -> Tensor:
        if self.has_closed_form(layer):
            if layer in self._shared or output.is_inference():
                self.activations[layer] = output.detach().clone()
            else:
                self._versions[layer] = output, output._version
                self.activations[layer] = output.detach()
            return output
        if torch.is_inference_mode_enabled() or output.is_inference():
            with torch.inference_mode(mode=False):
                return self._with_leaf(layer, output.clone())
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            self._opened = True
        return self._with_zeros(layer, output) if layer in self._shared else self._with_leaf(layer, output)

    def _with_leaf(self, layer: str, output: Tensor) -> Tensor:
        self._versions[layer] = output, output._version
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.sources[layer] = output
        self.activations[layer] = output.detach()
        return output.clone()

    def _with_zeros(self, layer: str, output: Tensor) -> Tensor:
        self.activations[layer] = output.detach().clone()
        self.sources[layer] = torch.zeros_like(output, requires_grad=True)
        return output.add_(self.sources[layer])


class EagerClassifier:
    """An eager module, in eval mode and with its parameters frozen (`Classifier`)."""

    kind = "eager"
    batch: tuple[int, int | None] = (1, None)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def survey(self, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
        """Runs the module once and describes every layer that ran."""
        builder = SurveyBuilder(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)
        scores = self._look(pictures, builder)
        resolve_orders(builder, self._look, pictures)
        return builder.build(scores)

    def _look(self, pictures: Tensor, builder: SurveyBuilder) -> Tensor:
        """Shows the builder one run; returns the scores."""

        def look(name: str, module: nn.Module, output: Any) -> None:
            builder.record(name, self.class_of(module), extract_tensor(output))

        with torch.no_grad(), hook_every_call(self.module, look):
            return extract_logits(self.module(self.cast_input(pictures)), len(pictures))

    def cast_input(self, pictures: Tensor) -> Tensor:
        """The pictures in the type of the weights."""
        return cast_input(self.module, pictures)

    def class_of(self, module: nn.Module) -> str:
        """The name of a module's class."""
        return type(module).__name__

    def capture(self, sites: Mapping[str, Site], setting: CaptureSettings | None = None) -> Capture:
        """A capture at these layers."""
        return EagerCapture(self.module, sites, setting)

    def run_with(self, site: Site, pictures: Tensor, values: Tensor) -> Tensor:
        """The scores where the layer's output is `values` instead."""
        with torch.no_grad(), hook_last_calls(self.module, {site.layer: site}, lambda _, output: values.to(output, copy=True)):
            return extract_logits(self.module(self.cast_input(pictures)))

    def weights(self) -> Iterable[Tensor]:
        """The module's parameters."""
        return self.module.parameters()


def find_dtype(weights: Iterable[Tensor]) -> torch.dtype | None:
    """The type of the first floating weight, which is what the model takes pictures in; None: it has none."""
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def cast_input(model: nn.Module, pictures: Tensor) -> Tensor:
    """The pictures in the type of the model's weights, or of its buffers where it has no other weights."""
    return pictures.to(find_dtype(chain(model.parameters(), model.buffers())) or pictures.dtype)


def freeze(model: nn.Module) -> None:
    """Eval mode, and no parameter asks for a gradient."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
