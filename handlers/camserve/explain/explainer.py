"""Runs one chunk of pictures through the model: class scores for all, heatmaps for those that ask."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camserve.capture import Captured
from camserve.capture.backend import Backend
from camserve.core.errors import RequestError
from camserve.core.labels import Labels
from camserve.core.messages import Explanation, Score
from camserve.explain.methods import CONTRAST_CLASSES, METHODS, scale_maps
from camserve.explain.observer import NullObserver, Observer
from camserve.explain.sampling import NOTHING, Plan

logger = logging.getLogger(__name__)

TOP_CLASSES = 5
"""How many classes a prediction lists, as the stock handler does."""


@dataclass(frozen=True)
class Task:
    """What is to be explained of one picture.

    Attributes:
        layer: whose activation is weighted.
        method: one of `METHODS`.
        targets: class indices; empty: the `top_k` most probable classes.
        top_k: no meaning where `targets` are given.
    """

    layer: str
    method: str
    targets: tuple[int, ...] = ()
    top_k: int = 1


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture. No tensor of it has a graph.

    Attributes:
        classes: the most probable ones, most probable first.
        explanations: one for each target of its task, in order, without a region or an overlay; () where there was no task.
        logits: raw scores `[K]`, on the CPU.
        raw_maps: where the picture is measured, the unscaled maps `[h, w]` of its most probable class, and perhaps of the next.
    """

    classes: tuple[Score, ...]
    explanations: tuple[Explanation, ...]
    logits: Tensor
    raw_maps: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class _Scores:
    """What the scores of a chunk's pictures say.

    Attributes:
        probabilities: `[N, K]`.
        listed: (index, probability) of each picture's listed classes, most probable first.
        ranked: each picture's most probable classes, as many as its task needs, and at least two.
        finite: whether each picture's scores are finite.
    """

    probabilities: Tensor
    listed: list[list[tuple[int, float]]]
    ranked: list[list[int]]
    finite: list[bool]


@dataclass(frozen=True)
class _MapTask:
    """One map: of the `turn`-th target of the picture in one row of the chunk."""

    row: int
    turn: int
    target: int
    layer: str
    method: str


class Explainer:
    """Runs a model over chunks of pictures of one size.

    Args:
        labels: of the model's classes; None: their indices.
        method: of the maps that are measured; one that contrasts classes is replaced, because it takes a pass for each.
        observer: times the passes, and keeps the budget for maps that are only measured.
        listed: how many classes a prediction lists.
    """

    def __init__(
        self,
        backend: Backend,
        device: torch.device,
        labels: Labels | None = None,
        *,
        method: str = "gradcam++",
        observer: Observer | None = None,
        listed: int = TOP_CLASSES,
    ) -> None:
        self.backend = backend
        self.observer = observer or NullObserver()
        self._device = device
        self._labels = labels or Labels(backend.outputs)
        self._method = "gradcam++" if METHODS[method].contrasts else method
        self._listed = listed

    def explain(
        self, pictures: Sequence[Tensor], tasks: Sequence[Task | None], plan: Plan = NOTHING
    ) -> list[Prediction | RequestError]:
        """Run one forward pass over a chunk of pictures, and make the maps that are asked for and those that are measured.

        Args:
            pictures: each `[3, H, W]`, float32, normalised, all of one size.
            tasks: one for each picture; None wants no explanation.
            plan: what is measured, at the default layer.

        Returns:
            For each picture its prediction, or a 500 where its scores are not finite.
        """
        started = time.perf_counter()
        layers = [task.layer for task in tasks if task] + [self.backend.layers[0]] * bool(plan.rows)
        with self.observer.stage("forward"):
            captured = self.backend.capture.forward(self._stack(pictures), list(dict.fromkeys(layers)))
            scores = self._read_scores(captured.logits, tasks)
        asked = [
            _MapTask(row, turn, target, task.layer, task.method)
            for row, task in enumerate(tasks)
            if task and scores.finite[row]
            for turn, target in enumerate(task.targets or scores.ranked[row][: task.top_k])
        ]
        measured = {row: self._measured(row, scores.ranked[row][: plan.maps]) for row in plan.rows if scores.finite[row]}
        raw = self._make_maps(captured, asked)
        between = time.perf_counter()
        raw |= self._make_maps(captured, [each for several in measured.values() for each in several if each not in raw])
        self.observer.budget.add(len(pictures), between - started, time.perf_counter() - between)
        explanations = self._scale_maps(asked, raw, scores.probabilities.cpu())
        logits = captured.logits.cpu()
        return [
            Prediction(
                tuple(Score(index, self._labels[index], probability) for index, probability in scores.listed[row]),
                tuple(explanations.get(row, ())),
                logits[row],
                tuple(raw[each].numpy() for each in measured.get(row, ())),
            )
            if finite
            else RequestError(500, "InternalError", "the model's scores of this picture are not finite")
            for row, finite in enumerate(scores.finite)
        ]

    def _stack(self, pictures: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(pictures)).to(self._device)
        return stacked.contiguous(memory_format=torch.channels_last) if self.backend.channels_last else stacked

    def _read_scores(self, logits: Tensor, tasks: Sequence[Task | None]) -> _Scores:
        """Read the logits `[N, K]`; those that are not finite are logged."""
        probabilities = torch.softmax(logits, 1)
        top = torch.topk(probabilities, min(self._listed, logits.shape[1]), dim=1)  # as the stock handler, with its k
        values, indices = top.values.tolist(), top.indices.tolist()
        depths = (max(2, task.top_k if task else 1) for task in tasks)
        ranked = [_rank(*each) for each in zip(probabilities, indices, depths, strict=True)]
        finite = torch.isfinite(logits).all(1).tolist()
        if not all(finite):
            logger.error("camserve: the model's scores of %d of %d pictures are not finite", finite.count(False), len(finite))
        listed = [list(zip(*each, strict=True)) for each in zip(indices, values, strict=True)]
        return _Scores(probabilities, listed, ranked, finite)

    def _measured(self, row: int, targets: Sequence[int]) -> list[_MapTask]:
        """List the maps that are measured of one picture; often they are asked for anyway."""
        return [_MapTask(row, turn, target, self.backend.layers[0], self._method) for turn, target in enumerate(targets)]

    def _make_maps(self, captured: Captured, tasks: Sequence[_MapTask]) -> dict[_MapTask, Tensor]:
        """Compute unscaled maps `[h, w]`, on the CPU.

        The t-th targets of all pictures share one backward pass. Where the gradients have a closed form no pass is needed, so
        all targets of a single picture are computed in one call.
        """
        alone = len(captured.logits) == 1
        rounds: dict[tuple[str, str, int], list[_MapTask]] = {}
        for task in dict.fromkeys(tasks):
            together = alone and captured.has_closed_form(task.layer) and not METHODS[task.method].contrasts
            rounds.setdefault((task.layer, task.method, 0 if together else task.turn), []).append(task)
        raw: dict[_MapTask, Tensor] = {}
        if rounds:
            with self.observer.stage("backward"):
                for (layer, method, _), part in rounds.items():
                    maps = self._make_round(captured, layer, method, [task.row for task in part], [task.target for task in part])
                    raw.update(zip(part, maps.detach().cpu().unbind(), strict=True))
        return raw

    def _make_round(self, captured: Captured, layer: str, method: str, rows: list[int], targets: list[int]) -> Tensor:
        """Compute the maps `[M, h, w]` of one target for each of M pictures."""
        row_index = torch.tensor(rows, device=self._device)
        target_index = torch.tensor(targets, device=self._device)
        activation = captured.activation(layer)
        if len(rows) < len(activation):
            activation = activation[row_index]
        gradients = captured.gradients(layer, row_index, target_index)
        if not METHODS[method].contrasts:
            return METHODS[method].function(activation, gradients)
        others = _contrast_classes(captured.logits[row_index], target_index)
        contrast = [captured.gradients(layer, row_index, other) for other in others.unbind(1)]
        stacked = torch.stack(contrast, 1) if contrast else torch.zeros_like(gradients)[:, None]
        return METHODS[method].function(activation, gradients, stacked)

    def _scale_maps(
        self, tasks: Sequence[_MapTask], raw: Mapping[_MapTask, Tensor], probabilities: Tensor
    ) -> dict[int, list[Explanation]]:
        """Scale each picture's maps to heatmaps, in the order of its targets; those of one size together."""
        by_shape: dict[torch.Size, list[_MapTask]] = {}
        for task in tasks:
            by_shape.setdefault(raw[task].shape, []).append(task)
        explanations: dict[_MapTask, Explanation] = {}
        for part in by_shape.values():
            for task, *scaled in zip(part, *scale_maps(torch.stack([raw[task] for task in part])), strict=True):
                probability = float(probabilities[task.row, task.target])
                explanations[task] = self._explanation(task.target, probability, *scaled)
        by_row: dict[int, list[Explanation]] = {}
        for task in tasks:
            by_row.setdefault(task.row, []).append(explanations[task])
        return by_row

    def _explanation(
        self,
        target: int,
        probability: float,
        heatmap: NDArray[np.float32],
        limits: tuple[float, float] | None,
        warnings: tuple[str, ...],
    ) -> Explanation:
        return Explanation(target, self._labels[target], probability, heatmap, limits, None, warnings)


def _rank(probabilities: Tensor, listed: list[int], depth: int) -> list[int]:
    """Return the `depth` most probable classes of one picture, the listed ones first.

    Which of equal probabilities `topk` takes, and in which order, depends on k: no neighbour's k may decide it.
    """
    if depth <= len(listed):
        return listed
    more = torch.topk(probabilities, min(depth, len(probabilities))).indices.tolist()
    return [*listed, *(each for each in more if each not in listed)][:depth]


def _contrast_classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the most probable other classes `[M, R]` of each picture; R is smaller where there are fewer classes."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return torch.topk(others, min(CONTRAST_CLASSES, logits.shape[1] - 1), dim=1).indices
