"""One chunk of pictures through the model: class scores for all, heatmaps for those that ask."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camserve.capture import Captured
from camserve.capture.backend import Backend
from camserve.core.errors import RequestError
from camserve.explain.methods import CONTRAST_CLASSES, METHODS, heatmaps
from camserve.explain.observer import NullObserver, Observer

logger = logging.getLogger(__name__)

TOP_CLASSES = 5
"""How many classes a prediction lists, as the stock handler."""


@dataclass(frozen=True)
class Want:
    """What is to be explained of one picture: `targets`, or where there are none the `top_k` most probable classes."""

    layer: str
    method: str
    targets: tuple[int, ...] = ()
    top_k: int = 1


@dataclass(frozen=True)
class Map:
    """One target's heatmap `[h, w]` in [0, 1], float32; `range` is the map's own (min, max), None if it was not finite."""

    target: int
    probability: float
    heatmap: NDArray[np.float32]
    range: tuple[float, float] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What the model says of one picture: (index, probability) of its top classes, most probable first, and the maps.

    `raw`: where the picture is watched, the unscaled map `[h, w]` of its most probable class, and perhaps of the next.
    """

    classes: tuple[tuple[int, float], ...]
    maps: tuple[Map, ...]
    logits: Tensor
    raw: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class _Predicted:
    """Of each picture: its probabilities `[N, K]`, the classes that are listed, at least the two most probable ones in their
    order, and whether its scores are finite."""

    probabilities: Tensor
    classes: list[tuple[tuple[int, float], ...]]
    ranked: list[list[int]]
    finite: list[bool]


@dataclass(frozen=True)
class _Ask:
    """The `turn`-th target of the picture in one row of the chunk."""

    row: int
    turn: int
    target: int
    layer: str
    method: str


OVERLAP_EVERY = 4
"""Where a watched picture's maps take passes, the runner-up's is made in one chunk of so many."""


class Explainer:
    """Runs a model over chunks of pictures of one size.

    Args:
        method: of the maps of watched pictures; one that compares classes is replaced, for it takes a pass for each.
        observer: times the passes, and says what watching may cost where it takes passes of its own.
        listed: how many classes a prediction lists.
    """

    def __init__(
        self,
        backend: Backend,
        device: torch.device,
        method: str = "gradcam++",
        observer: Observer | None = None,
        *,
        listed: int = TOP_CLASSES,
    ) -> None:
        self._listed = listed
        self._backend = backend
        self._device = device
        self._method = "gradcam++" if METHODS[method].contrasts else method
        self.observer = observer or NullObserver()
        self._closed = backend.layers[0] in backend.closed_form
        self._watched_chunks = 0

    def explain(
        self, pictures: Sequence[Tensor], wants: Sequence[Want | None], watched: Collection[int] = ()
    ) -> list[Seen | RequestError]:
        """One forward pass over `pictures` (each `[3, H, W]`, float32, normalised); None wants no explanation.

        Args:
            watched: the places of those pictures whose raw maps are to be returned, at the default layer. Where that takes
                backward passes, none are while these have taken more than the observer's budget allows.

        Returns:
            For each picture what was seen, or a 500 where its scores are not finite. No tensor of it has a graph.
        """
        started = time.perf_counter()
        sampled, watched = len(watched), self._affordable(watched)
        asked = [want.layer for want in wants if want] + [self._backend.layers[0]] * bool(watched)
        with self.observer.stage("forward"):
            captured = self._backend.capture.forward(self._stacked(pictures), list(dict.fromkeys(asked)))
            found = self._predicted(captured.logits, wants)
        asks = [
            _Ask(row, turn, target, want.layer, want.method)
            for row, want in enumerate(wants)
            if want and found.finite[row]
            for turn, target in enumerate(want.targets or found.ranked[row][: want.top_k])
        ]
        count = self._watched_maps() if watched else 0
        looks = {row: self._watch(row, found.ranked[row][:count]) for row in watched if found.finite[row]}
        raw = self._raw(captured, asks)
        between = time.perf_counter()
        raw |= self._raw(captured, [ask for several in looks.values() for ask in several if ask not in raw])
        self.observer.budget.add(len(pictures), between - started, time.perf_counter() - between)
        maps = _scaled(asks, raw, found.probabilities.cpu())
        scores = captured.logits.cpu()
        if sampled and not watched:  # told here, where nothing can fail any more: a chunk that fails comes again in halves
            self.observer.missed("budget", sampled)
        return [
            Seen(
                found.classes[row],
                tuple(maps.get(row, ())),
                scores[row],
                tuple(raw[ask].numpy() for ask in looks.get(row, ())),
            )
            if good
            else RequestError(500, "InternalError", "the model's scores of this picture are not finite")
            for row, good in enumerate(found.finite)
        ]

    def _predicted(self, logits: Tensor, wants: Sequence[Want | None]) -> _Predicted:
        """What the scores `[N, K]` say; those that are not finite are logged."""
        probabilities = torch.softmax(logits, 1)
        top = torch.topk(probabilities, min(self._listed, logits.shape[1]), dim=1)  # as the stock handler, with its k
        values, listed = top.values.tolist(), top.indices.tolist()
        depths = (max(2, want.top_k if want else 1) for want in wants)
        ranked = [_ranked(*each) for each in zip(probabilities, listed, depths, strict=True)]
        finite = torch.isfinite(logits).all(1).tolist()
        if not all(finite):
            logger.error("camserve: the model's scores of %d of %d pictures are not finite", finite.count(False), len(finite))
        return _Predicted(
            probabilities, [tuple(zip(*each, strict=True)) for each in zip(listed, values, strict=True)], ranked, finite
        )

    def _stacked(self, pictures: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(pictures)).to(self._device)
        return stacked.contiguous(memory_format=torch.channels_last) if self._backend.channels_last else stacked

    def _affordable(self, watched: Collection[int]) -> Collection[int]:
        """The watched places; none where their maps take passes, and these have taken their share of the time."""
        return watched if self._closed or self.observer.budget.allows() else ()

    def _watched_maps(self) -> int:
        """How many of the most probable classes get a map in this chunk: two where that costs nothing, or where its turn is."""
        self._watched_chunks += 1
        turn = self._watched_chunks % OVERLAP_EVERY == 1
        return 2 if self._closed or turn or not self.observer.budget.limited else 1

    def _watch(self, row: int, targets: Sequence[int]) -> list[_Ask]:
        """The maps of a watched picture; often they are asked for anyway."""
        return [_Ask(row, turn, target, self._backend.layers[0], self._method) for turn, target in enumerate(targets)]

    def _raw(self, captured: Captured, asks: Sequence[_Ask]) -> dict[_Ask, Tensor]:
        """The maps `[h, w]`, on the CPU. The t-th targets of all pictures share a backward pass; those of a lone picture are made
        together where there is none to take."""
        lone = len(captured.logits) == 1
        rounds: dict[tuple[str, str, int], list[_Ask]] = {}
        for ask in dict.fromkeys(asks):
            together = lone and captured.has_closed_form(ask.layer) and not METHODS[ask.method].contrasts
            rounds.setdefault((ask.layer, ask.method, 0 if together else ask.turn), []).append(ask)
        found: dict[_Ask, Tensor] = {}
        if rounds:
            with self.observer.stage("backward"):
                for (layer, method, _), part in rounds.items():
                    maps = self._round(captured, layer, method, [ask.row for ask in part], [ask.target for ask in part])
                    found.update(zip(part, maps.detach().cpu().unbind(), strict=True))
        return found

    def _round(self, captured: Captured, layer: str, method: str, rows: list[int], targets: list[int]) -> Tensor:
        """The maps `[M, h, w]` of one target for each of M pictures."""
        row_index = torch.tensor(rows, device=self._device)
        target_index = torch.tensor(targets, device=self._device)
        activation = captured.activation(layer)
        if len(rows) < len(activation):
            activation = activation[row_index]
        gradients = captured.gradients(layer, row_index, target_index)
        if not METHODS[method].contrasts:
            return METHODS[method].function(activation, gradients)
        contrasts = _contrasts(captured.logits[row_index], target_index)
        contrast_gradients = [captured.gradients(layer, row_index, contrast) for contrast in contrasts.unbind(1)]
        stacked = torch.stack(contrast_gradients, 1) if contrast_gradients else torch.zeros_like(gradients)[:, None]
        return METHODS[method].function(activation, gradients, stacked)


def _ranked(probabilities: Tensor, listed: list[int], depth: int) -> list[int]:
    """The `depth` most probable classes of one picture, the listed ones first.

    Which of equal probabilities `topk` takes, and in which order, depends on k: no neighbour's k may decide it.
    """
    if depth <= len(listed):
        return listed
    more = torch.topk(probabilities, min(depth, len(probabilities))).indices.tolist()
    return [*listed, *(each for each in more if each not in listed)][:depth]


def _scaled(asks: Sequence[_Ask], raw: Mapping[_Ask, Tensor], probabilities: Tensor) -> dict[int, list[Map]]:
    """Each picture's maps, in the order of its targets; those of one size are scaled together."""
    alike: dict[torch.Size, list[_Ask]] = {}
    for ask in asks:
        alike.setdefault(raw[ask].shape, []).append(ask)
    found: dict[_Ask, Map] = {}
    for part in alike.values():
        for ask, *scaled in zip(part, *heatmaps(torch.stack([raw[ask] for ask in part])), strict=True):
            found[ask] = Map(ask.target, float(probabilities[ask.row, ask.target]), *scaled)
    maps: dict[int, list[Map]] = {}
    for ask in asks:
        maps.setdefault(ask.row, []).append(found[ask])
    return maps


def _contrasts(logits: Tensor, targets: Tensor) -> Tensor:
    """The `CONTRAST_CLASSES` most probable other classes `[M, R]` of each picture; R is smaller where there are fewer classes."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return torch.topk(others, min(CONTRAST_CLASSES, logits.shape[1] - 1), dim=1).indices
