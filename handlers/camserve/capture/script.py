"""Capture for TorchScript modules, scripted or traced: the program's graph is given further outputs when it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from camserve.capture import surgery
from camserve.capture.base import Capture, Captured, Setting
from camserve.capture.eager import dtype_of
from camserve.capture.layers import POOL_INPUT, Moments, Site, Survey, Surveyor
from camserve.capture.layout import logits_of
from camserve.capture.passes import Pass, Pieces, fitting

HIDDEN = "it runs inside a branch or a loop of the TorchScript program, where its output cannot be taken"
FROZEN = (
    "the TorchScript archive has no names of layers (torch.jit.freeze and optimize_for_inference drop them); take the archive "
    "as it was before"
)
BATCH_ERROR = 1e-3
"""How far the scores of two pictures together may be from theirs alone, as a share of the largest; else they go one by one."""


class Script:
    """A TorchScript module (`Capture`).

    There is one function for each layer, and one for all of them, which serves whenever more than one is asked for.
    """

    def __init__(self, model: ScriptModel, sites: Mapping[str, Site], setting: Setting | None = None) -> None:
        self._model = model
        self._sites = dict(sites)
        self._setting = setting or Setting({})
        self._functions: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    @property
    def sites(self) -> Collection[str]:
        """The layers that may be asked for."""
        return self._sites.keys()

    def forward(self, pictures: Tensor, layers: Collection[str]) -> Captured:
        """Runs the program once over `[N, 3, H, W]`."""
        asked = {layer: self._sites[layer] for layer in layers}
        heads = self._setting.heads_for(pictures)
        context = self._setting.context or nullcontext
        with torch.inference_mode(mode=False), context():
            pictures = self._model.fed(pictures)
            if not asked:
                with torch.no_grad():
                    return Pass({}, {}, {}, {}, logits_of(self._setting.predicted(self._model.module, pictures)))
            names = tuple(asked) if len(asked) == 1 else tuple(self._sites)
            with torch.set_grad_enabled(not all(layer in heads for layer in asked)):
                answer, *further = self._function(names)(self._model.module._c, pictures)
            activations = dict(zip(names, further[::2], strict=True))
            sources = dict(zip(names, further[1::2], strict=True))
            return Pass(asked, heads, activations, sources, logits_of(answer))

    def _function(self, names: tuple[str, ...]) -> Any:
        with self._lock:
            if names not in self._functions:
                cuts = {self._model.place(self._sites[name]): surgery.leaf for name in names}
                self._functions[names] = surgery.with_outputs(self._model.program, cuts)
            return self._functions[names]


class ScriptModel:
    """A TorchScript module, in eval mode and with its parameters frozen (`Model`).

    Raises:
        ConfigError: this version of torch lacks what the surgery needs.
    """

    kind = "torchscript"

    def __init__(self, module: Any, pictures: Tensor) -> None:
        self.module = module
        self.program = surgery.inlined(module)
        self._dtype = dtype_of(self.weights())
        self._places: dict[str, int] = {mark.path: mark.place for mark in self.program.marks}
        self._replacing: dict[str, Any] = {}
        self.batch: tuple[int, int | None] = (1, None) if self._takes_two(pictures) else (1, 1)

    def fed(self, pictures: Tensor) -> Tensor:
        """The pictures in the type of the weights."""
        return pictures.to(self._dtype) if self._dtype else pictures

    def place(self, site: Site) -> int:
        """Where the layer's output is in the program, at its last call."""
        return self._places[site.layer]

    def _takes_two(self, pictures: Tensor) -> bool:
        """Whether two pictures together get the scores of each alone; a program that was traced with one may have kept that."""
        first, second = self._scores(pictures[:1]), self._scores(pictures[1:2])
        try:
            both = self._scores(pictures[:2])
        except (RuntimeError, ValueError):
            return False
        alone = torch.cat([first, second])
        return both.shape == alone.shape and bool((both - alone).abs().max() <= BATCH_ERROR * alone.abs().max())

    def _scores(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(self.module(self.fed(pictures)))

    def survey(self, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
        """Runs the program once and describes every layer that ran, and the pooled layer's input."""
        pictures = fitting(pictures, self.batch)
        looks = {mark.place: (mark.path, mark.kind) for mark in self.program.marks}
        places = sorted(set(looks).union(*self.program.pools))
        function = surgery.with_outputs(self.program, dict.fromkeys(places, surgery.statistics))
        with torch.no_grad():
            answer, *further = function(self.module._c, self.fed(pictures))
        seen = {place: _seen(further[6 * index : 6 * index + 6]) for index, place in enumerate(places)}
        surveyor = Surveyor(len(pictures), (pictures.shape[2], pictures.shape[3]), token_grid)
        pooled = [first for first, last in self.program.pools if surveyor.cells(*seen[first]) > 1 and _is_row(seen[last][0])]
        if pooled and POOL_INPUT not in self._places:  # a module of that name keeps it
            looks[pooled[-1]] = POOL_INPUT, POOL_INPUT
            self._places[POOL_INPUT] = pooled[-1]
        for place in sorted(looks):
            surveyor.add(*looks[place], *seen[place])
        hint = HIDDEN if self.program.hidden else "" if self.program.marks else FROZEN
        return surveyor.found(logits_of(answer), self.program.hidden, hint)

    def capture(self, sites: Mapping[str, Site], setting: Setting | None = None) -> Capture:
        """A capture at these layers."""
        capture = Script(self, sites, setting)
        return Pieces(capture, *self.batch) if self.batch[1] else capture

    def replaced(self, site: Site, pictures: Tensor, values: Tensor) -> Tensor:
        """The scores where the layer's output is `values` instead."""
        function = self._replacing.get(site.layer)
        if function is None:
            function = surgery.with_outputs(self.program, {self.place(site): surgery.given_instead})
            self._replacing[site.layer] = function
        with torch.no_grad():
            return logits_of(function(self.module._c, self.fed(pictures), self.fed(values).clone()))  # the head may write into it

    def weights(self) -> Iterable[Tensor]:
        """The parameters, and the tensors that a frozen program holds as constants."""
        return [*self.module.parameters(), *surgery.constants(self.program)]


def _is_row(shape: tuple[int, ...]) -> bool:
    """Whether an output has one value a channel: it is what pooling gives."""
    return len(shape) >= 2 and all(side == 1 for side in shape[2:])


def _seen(values: Sequence[Any]) -> tuple[tuple[int, ...], Moments | None]:
    """The shape of an activation, and its moments if it is of a floating type."""
    shape, dtype, negative, *means = values
    floating = surgery.is_floating(dtype) and 0 not in shape
    return tuple(shape), Moments(bool(negative), *map(float, means)) if floating else None
