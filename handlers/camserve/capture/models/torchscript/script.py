"""Capture for TorchScript modules, scripted or traced: the program's graph is given further outputs when it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured, CaptureSettings
from camserve.capture.models.eager import find_dtype
from camserve.capture.models.passes import Pass, SplitCapture, copy_saved_tensors, fit_batch, pad_batch
from camserve.capture.models.torchscript import outputs, rewriting
from camserve.capture.survey.layers import MODEL_ERRORS, POOL_INPUT, Site, Survey, SurveyBuilder, resolve_orders
from camserve.capture.survey.layout import extract_logits
from camserve.capture.survey.readings import Moments
from camserve.core.errors import ConfigError

HIDDEN = "it runs inside a branch or a loop of the TorchScript program, where its output cannot be taken"
FROZEN = (
    "the TorchScript archive has no names of layers (torch.jit.freeze and optimize_for_inference drop them); take the archive "
    "as it was before"
)
BATCH_ERROR = 1e-3
"""How far a picture's scores may change with the other pictures, as a share of the largest; else they go one by one."""

LARGEST = 64
"""Most pictures at once that are tried, of a program that was traced for a fixed number of them."""


class ScriptCapture:
    """A TorchScript module (`Capture`).

    There is one function for each layer, and one for all of them, which serves whenever more than one is asked for.
    """

    def __init__(self, model: ScriptClassifier, sites: Mapping[str, Site], setting: CaptureSettings | None = None) -> None:
        self._model = model
        self._sites = dict(sites)
        self._setting = setting or CaptureSettings({})
        self._functions: dict[tuple[str, ...], tuple[Any, bool]] = {}
        self._lock = threading.Lock()

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the program once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        heads = self._setting.cam_weights_for(pictures)
        context = self._setting.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = self._model.cast_input(pictures)
            if not asked:
                with torch.no_grad():
                    answer = self._setting.predict_only(self._model.module, pictures)
                    return Pass({}, {}, {}, {}, extract_logits(answer, len(pictures)))
            names = tuple(asked) if len(asked) == 1 else tuple(self._sites)
            function, writes = self._function(names)
            with (
                torch.set_grad_enabled(not all(layer in heads for layer in asked)),
                copy_saved_tensors() if writes else nullcontext(),
            ):
                answer, *further = function(self._model.module._c, pictures)
            activations = dict(zip(names, further[::2], strict=True))
            sources = dict(zip(names, further[1::2], strict=True))
            return Pass(
                asked, heads, activations, sources, extract_logits(answer, len(pictures)), self._setting.scale_of(pictures)
            )

    def _function(self, names: tuple[str, ...]) -> tuple[Any, bool]:
        with self._lock:
            if names not in self._functions:
                places = [self._model.place(self._sites[name]) for name in names]
                self._functions[names] = outputs.add_leaves(self._model.program, places)
            return self._functions[names]


class ScriptClassifier:
    """A TorchScript module, in eval mode and with its parameters frozen (`Classifier`).

    Raises:
        ConfigError: this version of torch lacks what the surgery needs, or the program mixes the pictures that it is given.
        RuntimeError, ValueError, torch.jit.Error: it does not run on these pictures, or gives no row of scores for each.
    """

    kind = "torchscript"

    def __init__(self, module: Any, pictures: Tensor) -> None:
        self.module = module
        self.program = rewriting.inline_calls(module)
        self._dtype = find_dtype(chain(self.weights(), module.buffers()))
        self._places: dict[str, int] = {mark.path: mark.place for mark in self.program.marks}
        self._pool: int | None = None  # the pooled layer's input, where no module has its name
        self._replacing: dict[str, Any] = {}
        self.batch = self._taken(pictures)

    def cast_input(self, pictures: Tensor) -> Tensor:
        """The pictures in the type of the weights."""
        return pictures.to(self._dtype) if self._dtype else pictures

    def place(self, site: Site) -> int:
        """Where the layer's output is in the program, at its last call."""
        return self._places[site.layer]

    def _taken(self, pictures: Tensor) -> tuple[int, int | None]:
        """Fewest and most pictures that it takes at once, by trial: a trace may have kept how many it was traced with."""
        first, both = self._answer(pictures[:1]), self._answer(pictures[:2])
        if first is not None:
            second = self._answer(pictures[1:2])
            return (1, None) if second is not None and both is not None and _equal(torch.cat([first, second]), both) else (1, 1)
        for count in rewriting.list_integers(self.program, LARGEST):
            given = pad_batch(pictures, count)[:count]
            answer, other = self._answer(given), self._answer(torch.cat([given[:1], -given[1:]]))
            if answer is not None and other is not None:
                if _equal(answer[:1], other[:1]):
                    return count, count
                raise ConfigError(f"the program takes {count} pictures at once, and the scores of each depend on the others")
        self._scores(pictures[:2])  # it fails, and says why
        raise ValueError(f"the program takes neither one picture alone nor a fixed number of them up to {LARGEST}")

    def _answer(self, pictures: Tensor) -> Tensor | None:
        """The scores `[N, K]` of N pictures; None: it does not take so many, or does not give a row for each."""
        try:
            return self._scores(pictures)
        except MODEL_ERRORS:
            return None

    def _scores(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return extract_logits(self.module(self.cast_input(pictures)), len(pictures))

    def survey(self, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
        """Runs the program once and describes every layer that ran, and the pooled layer's input."""
        pictures = fit_batch(pictures, self.batch)
        builder = SurveyBuilder(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)
        scores = self._look(pictures, builder)
        resolve_orders(builder, self._look, pictures)
        hint = HIDDEN if self.program.hidden else "" if self.program.marks else FROZEN
        return builder.build(scores, self.program.hidden, hint)

    def _look(self, pictures: Tensor, builder: SurveyBuilder) -> Tensor:
        """Shows the builder one run; returns the scores."""
        looks = {mark.place: (mark.path, mark.kind) for mark in self.program.marks}
        places = sorted(set(looks).union(*self.program.pools))
        function = outputs.add_outputs(self.program, dict.fromkeys(places, outputs.insert_statistics))
        with torch.no_grad():
            answer, *further = function(self.module._c, self.cast_input(pictures))
        seen = {place: _seen(further[6 * index : 6 * index + 6]) for index, place in enumerate(places)}
        for first, last in reversed(self.program.pools):
            if POOL_INPUT not in self._places and _is_row(seen[last][0]) and builder.cells(*seen[first]) > 1:
                self._places[POOL_INPUT] = self._pool = first
        if self._pool is not None:
            looks[self._pool] = POOL_INPUT, POOL_INPUT
        for place in sorted(looks):
            builder.record_summary(*looks[place], *seen[place])
        return extract_logits(answer, len(pictures))

    def capture(self, sites: Mapping[str, Site], setting: CaptureSettings | None = None) -> Capture:
        """A capture at these layers."""
        capture = ScriptCapture(self, sites, setting)
        return SplitCapture(capture, *self.batch) if self.batch[1] else capture

    def run_with(self, site: Site, pictures: Tensor, values: Tensor) -> Tensor:
        """The scores where the layer's output is `values` instead."""
        function = self._replacing.get(site.layer)
        if function is None:
            function = outputs.add_outputs(self.program, {self.place(site): outputs.insert_input})
            self._replacing[site.layer] = function
        with torch.no_grad():
            return extract_logits(
                function(self.module._c, self.cast_input(pictures), self.cast_input(values).clone())
            )  # the head may write into it

    def weights(self) -> Iterable[Tensor]:
        """The parameters, and the tensors that a frozen program holds as constants."""
        return [*self.module.parameters(), *rewriting.list_constants(self.program)]


def _equal(scores: Tensor, others: Tensor) -> bool:
    return bool((scores - others).abs().max() <= BATCH_ERROR * scores.abs().max())


def _is_row(shape: tuple[int, ...]) -> bool:
    """Whether an output has one value a channel: it is what pooling gives."""
    return len(shape) >= 2 and all(side == 1 for side in shape[2:])


def _seen(values: Sequence[Any]) -> tuple[tuple[int, ...], Moments | None]:
    """The shape of an activation, and its moments if it is of a floating type."""
    shape, dtype, negative, *means = values
    floating = outputs.is_floating(dtype) and 0 not in shape
    return tuple(shape), Moments(bool(negative), *map(float, means)) if floating else None
