"""Capture for eager modules: a forward hook makes the layer's output a leaf, so that only what is behind it has a graph.

What is behind a layer, up to the scores, is called its head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, Captured, CaptureSettings, Values
from camserve.capture.models import quantized
from camserve.capture.models.hooks import hook_calls, hook_every_call, hook_parents
from camserve.capture.models.passes import Pass, SplitCapture, copy_saved_tensors, fit_batch, values_of
from camserve.capture.precision import cast_input, find_dtype
from camserve.capture.survey.builder import SurveyBuilder, resolve_orders
from camserve.capture.survey.endings import Ending, EndingWatch
from camserve.capture.survey.layers import Site, Survey
from camserve.capture.survey.layout import extract_tensor, replace_tensor
from camserve.capture.survey.reader import FIRST, Scores


class EagerCapture:
    """Captures an eager model (`Capture`). Hooks live for one pass, and act in the thread that runs it.

    Args:
        model: in eval mode, with frozen parameters (`freeze`): then nothing before the first asked layer has a graph.
        sites: the layers that may be asked for.
        settings: how to run it.
        modules: the paths of the modules of layers that go by another name.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        settings: CaptureSettings | None = None,
        modules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._model = model
        self._sites = dict(sites)
        self._settings = settings or CaptureSettings({})
        self._modules = modules or {}
        self._dtype = find_dtype(chain(model.parameters(), model.buffers()))
        self._dynamic = quantized.find_dynamic_layers(model)
        self._aliased: frozenset[str] = frozenset()

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the model once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        cam_weights = self._settings.cam_weights_for(pictures)
        context = self._settings.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = pictures.to(self._dtype) if self._dtype else pictures
            if not asked:
                with torch.no_grad():
                    answer = self._settings.predict_only(self._model, pictures)
                    return Pass({}, {}, {}, {}, *self._settings.reader.read(answer, len(pictures)))
            while True:
                hook = _OutputHook(cam_weights, self._aliased)
                scores = self._run(pictures, asked, hook)
                if hook.overwritten <= self._aliased:
                    return Pass(asked, cam_weights, hook.activations, hook.leaves, *scores, self._settings.scale_of(pictures))
                self._aliased |= hook.overwritten  # so a model's pass is repeated once in its life

    def _run(self, pictures: Tensor, asked: Mapping[str, Site], hook: _OutputHook) -> Scores:
        """Run the model with the hook at the asked layers, and return its scores."""
        reader = self._settings.reader
        with ExitStack() as stack:
            closed = all(hook.has_closed_form(layer) for layer in asked)
            stack.enter_context(torch.set_grad_enabled(not closed))
            stack.enter_context(hook_calls(self._model, asked, hook, self._modules))
            if not self._aliased.isdisjoint(key for site in asked.values() for key in site.keys.values()):
                stack.enter_context(copy_saved_tensors())
            if not closed:
                paths = [path for layer in asked for path in self._modules.get(layer, (layer,))]
                stack.enter_context(hook_parents(self._model, paths, hook.restore_grad_mode))
                stack.enter_context(quantized.let_gradients_through(self._dynamic))
            watch = None if closed else stack.enter_context(reader.watch(len(pictures)))
            return reader.read(self._model(pictures), len(pictures), watch)


class _OutputHook:
    """Forward hook that stores each layer's output.

    The head receives a clone of the leaf, so in-place operations behind the layer change neither the activation nor the leaf.
    Some models write into the output through an alias (for example the layer's input); a clone would hide that write from the
    head. Such layers are detected by their version counter, and the pass is repeated with a zero leaf added in place
    (`aliased`). Under the CAM condition there is no leaf, and only an aliased layer's output is cloned.

    A model may run the layer in `torch.no_grad()`. Grad mode is then switched on until that block ends. In `inference_mode`
    that is not possible: the leaf is an ordinary tensor, whose graph starts behind the block.

    Attributes:
        activations: each layer's output, without a graph.
        leaves: what the scores can be differentiated with respect to, for the layers that do not meet the CAM condition.
    """

    def __init__(self, cam_weights: Collection[str], aliased: Collection[str]) -> None:
        self.activations: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self._cam_weights = cam_weights
        self._aliased = aliased
        self._versions: dict[str, tuple[Tensor, int]] = {}
        self._grad_mode_changed = False

    @property
    def overwritten(self) -> frozenset[str]:
        """The layers into whose outputs something was written after they were stored."""
        return frozenset(layer for layer, (output, version) in self._versions.items() if output._version != version)

    def has_closed_form(self, layer: str) -> bool:
        """Return whether the layer's gradients are known without a graph."""
        return layer in self._cam_weights

    def restore_grad_mode(self) -> None:
        """Switch grad mode on again, after a module has ended that ran a layer without it."""
        if self._grad_mode_changed:
            torch.set_grad_enabled(True)

    def __call__(self, layer: str, output: Tensor) -> Tensor:
        """Store a layer's output, of any shape, and return what the head goes on with."""
        if output.is_quantized:  # which has no gradient: what is behind it is known in closed form, or not at all
            self.activations[layer] = output.dequantize()
            return output
        if self.has_closed_form(layer):
            if layer in self._aliased or output.is_inference():
                self.activations[layer] = output.detach().clone()
            else:
                self._versions[layer] = output, output._version
                self.activations[layer] = output.detach()
            return output
        if torch.is_inference_mode_enabled() or output.is_inference():
            with torch.inference_mode(mode=False):
                return self._make_leaf(layer, output.clone())
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            self._grad_mode_changed = True
        return self._add_zero_leaf(layer, output) if layer in self._aliased else self._make_leaf(layer, output)

    def _make_leaf(self, layer: str, output: Tensor) -> Tensor:
        self._versions[layer] = output, output._version
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.leaves[layer] = output
        self.activations[layer] = output.detach()
        return output.clone()

    def _add_zero_leaf(self, layer: str, output: Tensor) -> Tensor:
        self.activations[layer] = output.detach().clone()
        self.leaves[layer] = torch.zeros_like(output, requires_grad=True)
        return output.add_(self.leaves[layer])


class EagerClassifier:
    """An eager module, in eval mode and with frozen parameters (`Classifier`)."""

    kind = "eager"
    clips = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.reader = FIRST
        self._modules: dict[str, tuple[str, ...]] = {}
        # dynamic quantization rounds by the range of the whole batch: pictures run one by one, or each one's scores would
        # depend on the others
        self.batch: tuple[int, int | None] = (1, 1) if quantized.find_dynamic_layers(module) else (1, None)

    def survey(self, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
        """Run the module over `[N, 3, H, W]` and describe every layer that ran."""
        pictures = fit_batch(pictures, self.batch)
        builder = SurveyBuilder(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)
        scores = self._record(pictures, builder)
        resolve_orders(builder, self._record, pictures)
        return builder.build(scores)

    def _record(self, pictures: Tensor, builder: SurveyBuilder) -> Tensor:
        """Record a run, and return its scores `[N, K]`."""

        def record(name: str, module: nn.Module, output: Any) -> None:
            tensor = extract_tensor(output)
            builder.record(name, self.class_of(module), None if tensor is None else quantized.dequantize(tensor))

        with torch.no_grad(), hook_every_call(self.module, record):
            return self.reader.read(self.run(pictures), len(pictures)).logits

    def run(self, pictures: Tensor) -> Any:
        """Run the module over `[N, 3, H, W]`, and return what it gives."""
        return self.module(self.cast_input(pictures))

    def read_logits(self, pictures: Tensor) -> Tensor:
        """Run the module over `[N, 3, H, W]`, and return the logits `[N, K]`."""
        with self.reader.watch(len(pictures)) as watch:
            return self.reader.read(self.run(pictures), len(pictures), watch).logits

    def find_ending(self, pictures: Tensor) -> Ending:
        """Find the function that makes the module's scores of pictures `[N, 3, H, W]`, where its input can be watched."""
        width = self.reader.width
        if width is None:
            return ""
        with torch.no_grad(), EndingWatch(len(pictures) * width) as watch:
            values = self.reader.read(self.run(pictures), len(pictures)).values
        found = watch.find(self.reader.unscale(values))
        return found[0] if found else ""

    def complete(self, settings: CaptureSettings | None) -> CaptureSettings:
        """Return how to run the model, with how its scores are read."""
        return replace(settings or CaptureSettings({}), reader=self.reader)

    def cast_input(self, pictures: Tensor) -> Tensor:
        """Convert pictures `[N, 3, H, W]` to the type of the weights."""
        return cast_input(self.module, pictures)

    def class_of(self, module: nn.Module) -> str:
        """Return the name of a module's class."""
        return type(module).__name__

    def capture(self, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> Capture:
        """Make a capture at these layers."""
        capture = EagerCapture(self.module, sites, self.complete(settings))
        return SplitCapture(capture, *self.batch) if self.batch[1] else capture

    def run_with(self, site: Site, pictures: Tensor, values: Values) -> Tensor:
        """Run the module with the layer's output replaced by `values`, and return the scores `[N, K]`."""
        given = values_of(site, values)
        with (
            torch.no_grad(),
            hook_calls(
                self.module, {site.layer: site}, lambda key, output: quantized.quantize_like(given[key], output), self._modules
            ),
        ):
            return self.read_logits(pictures)

    def run_calls(
        self, layers: Collection[str], pictures: Tensor, replaced: Mapping[tuple[str, int], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Run the module; return the scores, and the output of every call of these layers."""
        given = replaced or {}
        outputs: dict[str, list[Tensor]] = {layer: [] for layer in (*layers, *(layer for layer, _ in given))}

        def record(name: str, _module: nn.Module, output: Any) -> Any:
            layer, tensor = self.name_of(name), extract_tensor(output)
            if layer not in outputs or tensor is None:
                return None
            values = given.get((layer, len(outputs[layer])))
            outputs[layer].append(quantized.dequantize((tensor if traced else tensor.detach()).clone()))
            return None if values is None else replace_tensor(output, quantized.quantize_like(values, tensor))

        traced = pictures.requires_grad
        with torch.set_grad_enabled(traced), hook_every_call(self.module, record):
            scores = self.read_logits(pictures)
        return scores, outputs

    def name_of(self, path: str) -> str:
        """Return the name of the layer whose module has this path."""
        return path

    def weights(self) -> Iterable[Tensor]:
        """Return the module's parameters, and its quantized weights."""
        return chain(self.module.parameters(), quantized.list_quantized_weights(self.module))

    def quantized_output(self, site: Site, pictures: Tensor) -> Tensor | None:
        """Return the layer's output as floats where it is quantized."""
        if next(iter(quantized.list_quantized_weights(self.module)), None) is None:
            return None
        found: list[Tensor] = []

        def keep(_layer: str, output: Tensor) -> Tensor:
            found.extend([output.dequantize()] if output.is_quantized else [])
            return output

        with torch.no_grad(), hook_calls(self.module, {site.layer: site}, keep, self._modules):
            self.module(self.cast_input(pictures))
        return found[0] if found else None
