"""Capture for TorchScript modules, scripted or traced: the program's graph gets further outputs when it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured, CaptureSettings, Values
from camserve.capture.models.passes import Pass, SplitCapture, copy_saved_tensors, fit_batch, pad_batch, values_of
from camserve.capture.models.programs.torchscript import outputs, rewriting
from camserve.capture.models.quantized import list_quantized_weights
from camserve.capture.precision import find_dtype
from camserve.capture.survey.builder import SurveyBuilder, resolve_orders
from camserve.capture.survey.endings import Ending
from camserve.capture.survey.layers import MODEL_ERRORS, POOL_INPUT, Site, Survey
from camserve.capture.survey.reader import FIRST, Scores
from camserve.capture.survey.readings import Moments

HIDDEN = "it runs inside a branch or a loop of the TorchScript program, where its output cannot be taken"
FROZEN = (
    "the TorchScript archive has no names of layers (torch.jit.freeze and optimize_for_inference drop them); take the archive "
    "as it was before"
)
LARGEST = 64
"""Most pictures at once that are tried with a program that was traced for a fixed number of them."""


class ScriptCapture:
    """Captures a TorchScript module (`Capture`).

    There is a function for each layer, and one for all layers, which runs whenever more than one is asked for; each twice, see
    `_function`.
    """

    def __init__(self, model: ScriptClassifier, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> None:
        self._model = model
        self._sites = dict(sites)
        self._settings = settings or CaptureSettings({})
        self._functions: dict[tuple[tuple[str, ...], bool], tuple[Any, bool]] = {}
        self._lock = threading.Lock()

    @property
    def sites(self) -> Collection[str]:
        """Names of the layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Run the program once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        cam_weights = self._settings.cam_weights_for(pictures)
        context = self._settings.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = self._model.cast_input(pictures)
            if not asked:
                with torch.no_grad():
                    answer = self._settings.predict_only(self._model.module, pictures)
                    return Pass({}, {}, {}, {}, *self._model.reader.read(answer, len(pictures)))
            names = tuple(asked) if len(asked) == 1 else tuple(self._sites)
            function, overwrites = self._function(names, single=len(pictures) == 1)
            with (
                torch.set_grad_enabled(not all(layer in cam_weights for layer in asked)),
                copy_saved_tensors() if overwrites else nullcontext(),
                _show_norms(pictures),
            ):
                answer, *further = function(self._model.module._c, pictures, *self._model.program.defaults)
            keys = [key for name in names for key in self._sites[name].keys.values()]
            further, behind = further[: 2 * len(keys)], further[2 * len(keys) :]
            activations = dict(zip(keys, further[::2], strict=True))
            leaves = {key: leaf for key, leaf in zip(keys, further[1::2], strict=True) if leaf.requires_grad}
            scores = self._model.read(answer, len(pictures), behind)
            return Pass(asked, cam_weights, activations, leaves, *scores, self._settings.scale_of(pictures))

    def _function(self, names: tuple[str, ...], *, single: bool) -> tuple[Any, bool]:
        """Return the function of some layers; single pictures have one of their own, as what is optimized once stays so."""
        with self._lock:
            if (names, single) not in self._functions:
                places = [place for name in names for place in self._model.places_of(self._sites[name])]
                quantized = self._model.quantized_places
                added = outputs.add_leaves(self._model.program, places, self._model.endings, quantized)
                self._functions[names, single] = added
            return self._functions[names, single]


def _show_norms(pictures: Tensor) -> AbstractContextManager[object]:
    """Context manager in which autograd sees each operation, of a single picture: `straighten_norms` looks for batch norms, and a
    program that is optimized hides them."""
    return torch.jit.optimized_execution(False) if len(pictures) == 1 else nullcontext()  # type: ignore[attr-defined]


class ScriptClassifier:
    """A TorchScript module, in eval mode and with frozen parameters (`Classifier`).

    Raises:
        ConfigError: this version of torch lacks what rewriting needs.
        RuntimeError, ValueError, torch.jit.Error: it does not run on these pictures, or gives no row of scores for each.
    """

    kind = "torchscript"
    clips = False

    def __init__(self, module: Any, pictures: Tensor) -> None:
        self.module = module
        self.program = rewriting.inline_calls(module)
        self._quantized = any(True for _ in list_quantized_weights(module))
        self.quantized_places: set[int] = set()
        self._dtype = find_dtype(chain(self.weights(), module.buffers()))
        self._places: dict[str, int] = {mark.path: mark.place for mark in self.program.marks}
        self._pool: int | None = None  # the place of POOL_INPUT, where the program has no names
        self._replacing: dict[str, Any] = {}
        self.reader = FIRST
        self.endings: tuple[int, ...] = ()  # the place of its last function, where that makes the scores
        self.batch = self._find_batch(pictures)

    def cast_input(self, pictures: Tensor) -> Tensor:
        """Convert pictures `[N, 3, H, W]` to the type of the weights."""
        return pictures.to(self._dtype) if self._dtype else pictures

    def places_of(self, site: Site) -> list[int]:
        """Return the places of the marks of those of a layer's calls that are taken."""
        marks = self._calls_of(site.layer)
        return [marks[call - 1] for call in site.keys]

    def _find_batch(self, pictures: Tensor) -> tuple[int, int | None]:
        """Find, by trial, the fewest and most pictures that it takes at once: a trace may have fixed their number."""
        if self._try(pictures[:1]) is not None:
            return 1, None if self._try(pictures[:2]) is not None else 1
        for count in rewriting.list_integers(self.program, LARGEST):
            if self._try(pad_batch(pictures, count)[:count]) is not None:
                return count, count
        self._scores(pictures[:2])  # it fails, and says why
        raise ValueError(f"the program takes neither one picture alone nor a fixed number of them up to {LARGEST}")

    def _try(self, pictures: Tensor) -> Tensor | None:
        """Return the scores `[N, K]` of N pictures; None: it does not take so many, or does not give a row for each."""
        try:
            return self._scores(pictures)
        except MODEL_ERRORS:
            return None

    def _scores(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return self.reader.read(self.run(pictures), len(pictures)).values

    def run(self, pictures: Tensor) -> Any:
        """Run the program over `[N, 3, H, W]`, and return what it gives."""
        return self.module(self.cast_input(pictures))

    def _given(self, pictures: Tensor) -> tuple[Any, ...]:
        """Return what a function of the program takes: the module, the pictures, and its own defaults."""
        return self.module._c, self.cast_input(pictures), *self.program.defaults

    def read(self, answer: object, count: int, behind: Sequence[Tensor]) -> Scores:
        """Read the scores of `count` pictures; `behind` holds what goes into the program's last function, if that is known."""
        scores = self.reader.read(answer, count)
        return self.reader.complete(scores.values, behind[0].reshape(scores.values.shape)) if behind else scores

    def find_ending(self, pictures: Tensor) -> Ending:
        """Find the program's last function, by trial: applied to its input it gives the scores of pictures `[N, 3, H, W]`."""
        endings = [ending for ending, _ in outputs.list_endings(self.program.graph)]
        if not endings:
            return ""
        function = outputs.add_outputs(self.program, {}, range(len(endings)))
        with torch.no_grad():
            answer, *inputs = function(*self._given(pictures))
            values = self.reader.unscale(self.reader.read(answer, len(pictures)).values)
            for place in reversed(range(len(endings))):
                if inputs[place].numel() == values.numel() and _makes(
                    endings[place], inputs[place].reshape(values.shape), values
                ):
                    self.endings = (place,)
                    return endings[place]
        return ""

    def survey(self, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
        """Run the program, and describe every layer that ran, and `POOL_INPUT`."""
        pictures = fit_batch(pictures, self.batch)
        builder = SurveyBuilder(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)
        scores = self._record(pictures, builder)
        resolve_orders(builder, self._record, pictures)
        hint = HIDDEN if self.program.hidden else "" if self.program.marks else FROZEN
        return builder.build(scores, self.program.hidden, hint)

    def _record(self, pictures: Tensor, builder: SurveyBuilder) -> Tensor:
        """Record a run, and return its scores `[N, K]`."""
        layers = {mark.place: (mark.path, mark.kind) for mark in self.program.marks}
        places = sorted(set(layers).union(*self.program.pools))
        statistics = outputs.insert_quantized_statistics if self._quantized else outputs.insert_statistics
        function = outputs.add_outputs(self.program, dict.fromkeys(places, statistics))
        with torch.no_grad():
            answer, *further = function(*self._given(pictures))
        summaries = {place: _summary_of(further[6 * index : 6 * index + 6]) for index, place in enumerate(places)}
        types = {place: further[6 * index + 1] for index, place in enumerate(places)}
        self.quantized_places |= {place for place, dtype in types.items() if dtype in outputs.QUANTIZED}
        for first, last in reversed(self.program.pools):
            if POOL_INPUT not in self._places and _is_pooled(summaries[last][0]) and builder.cells(*summaries[first]) > 1:
                self._places[POOL_INPUT] = self._pool = first
        if self._pool is not None:
            layers[self._pool] = POOL_INPUT, POOL_INPUT
        for place in sorted(layers):
            builder.record_summary(*layers[place], *summaries[place])
        return self.reader.read(answer, len(pictures)).logits

    def capture(self, sites: Mapping[str, Site], settings: CaptureSettings | None = None) -> Capture:
        """Make a capture at these layers."""
        capture = ScriptCapture(self, sites, settings)
        return SplitCapture(capture, *self.batch) if self.batch[1] else capture

    def run_with(self, site: Site, pictures: Tensor, values: Values) -> Tensor:
        """Run the program with the layer's output replaced by `values`, and return the scores `[N, K]`."""
        function = self._replacing.get(site.layer)
        if function is None:
            inserts = {place: self._insert_input(place) for place in self.places_of(site)}
            function = outputs.add_outputs(self.program, inserts, self.endings)
            self._replacing[site.layer] = function
        given = [self.cast_input(each).clone() for each in values_of(site, values).values()]  # the program may write into them
        with torch.no_grad():
            answer = function(*self._given(pictures), *given)
            answer, *behind = answer if self.endings else (answer,)
            return self.read(answer, len(pictures), behind).logits

    def run_calls(
        self, layers: Collection[str], pictures: Tensor, replaced: Mapping[tuple[str, int], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Run the program; return the scores, and the output of every call of these layers."""
        inputs = {self._calls_of(layer)[call]: values for (layer, call), values in (replaced or {}).items()}
        places = {layer: self._calls_of(layer) for layer in layers}
        inserts = {place: self._insert_input(place) for place in inputs}
        for place in (place for each in places.values() for place in each):
            copy = outputs.insert_quantized_copy if place in self.quantized_places else outputs.insert_copy
            inserts[place] = outputs.keep_first(copy, inserts[place]) if place in inputs else copy
        kept = [place for place in inserts if any(place in each for each in places.values())]
        function = outputs.add_outputs(self.program, inserts, self.endings)
        values = [self.cast_input(each).clone() for each in inputs.values()]
        with torch.set_grad_enabled(pictures.requires_grad), _show_norms(pictures):
            answer = function(*self._given(pictures), *values)
        answer, *further = answer if kept or self.endings else (answer,)
        found = dict(zip(kept, further, strict=False))
        scores = self.read(answer, len(pictures), further[len(kept) :]).logits
        return scores, {layer: [found[place] for place in each] for layer, each in places.items()}

    def _insert_input(self, place: int) -> outputs.Insert:
        return outputs.insert_quantized_input if place in self.quantized_places else outputs.insert_input

    def _calls_of(self, layer: str) -> list[int]:
        """Return the places of the marks of a layer's calls, in order."""
        places = [mark.place for mark in self.program.marks if mark.path == layer]
        return places or [self._places[layer]]

    def weights(self) -> Iterable[Tensor]:
        """Return the parameters, the tensors that a frozen program holds as constants, and quantized weights."""
        constants = rewriting.list_constants(self.program)
        return [*self.module.parameters(), *constants, *list_quantized_weights(self.module)]

    def quantized_output(self, site: Site, pictures: Tensor) -> Tensor | None:
        """Return the layer's output as floats where it is quantized."""
        place = self.places_of(site)[-1]
        if place not in self.quantized_places:
            return None
        function = outputs.add_outputs(self.program, {place: outputs.insert_value})
        with torch.no_grad():
            _, output, _ = function(self.module._c, self.cast_input(pictures))
        return torch.as_tensor(output)


def _makes(ending: Ending, given: Tensor, scores: Tensor) -> bool:
    """Return whether a function of logits `[N, K]` gives the scores."""
    made = given.sigmoid() if ending == "sigmoid" else given.softmax(1)
    return bool(torch.allclose(made, scores.to(made), rtol=1e-5, atol=1e-7))


def _is_pooled(shape: tuple[int, ...]) -> bool:
    """Return whether an output has one value a channel, as pooling gives it."""
    return len(shape) >= 2 and all(side == 1 for side in shape[2:])


def _summary_of(values: Sequence[Any]) -> tuple[tuple[int, ...], Moments | None]:
    """Return the shape of an activation, and its moments if it is of a floating type, from `outputs.insert_statistics`."""
    shape, dtype, negative, *means = values
    floating = outputs.is_floating(dtype) and 0 not in shape
    return tuple(shape), Moments(bool(negative), *map(float, means)) if floating else None
