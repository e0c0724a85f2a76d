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
from camserve.explain.methods import (
    CONTRAST_CLASSES,
    Method,
    choose_measured,
    find_method,
    list_methods,
    refine,
    scale_maps,
)
from camserve.explain.observer import NullObserver, Observer
from camserve.explain.ranking import TOP_CLASSES, Ranking, Task
from camserve.explain.sampling import NOTHING, Plan
from camserve.pictures.bounds.limits import FOREVER, Deadline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture. No tensor of it has a graph.

    Attributes:
        classes: the most probable ones, most probable first.
        explanations: one for each target of its task, in order, without a region or an overlay; () where there was no task.
        logits: the scores `[K]` as the model gives them, on the CPU.
        raw_maps: where the picture is measured, the unscaled maps `[h, w]` of its most probable class, and perhaps of the next.
        grid: (height, width) of the maps of its task, where there was one.
    """

    classes: tuple[Score, ...]
    explanations: tuple[Explanation, ...]
    logits: Tensor
    raw_maps: tuple[NDArray[np.float32], ...] = ()
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _MapTask:
    """One map: of the `turn`-th target of the picture in one row of the chunk."""

    row: int
    turn: int
    target: int
    layers: tuple[str, ...]
    method: str


class Explainer:
    """Runs a model over chunks of pictures of one size.

    Args:
        labels: of the model's classes; None: their indices.
        method: of the maps that are measured; one that contrasts classes is replaced, because it takes a pass for each.
        observer: times the passes, and keeps the budget for maps that are only measured.
        listed, threshold, most: as of `Ranking`.
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
        threshold: float = 0.5,
        most: int = 10,
    ) -> None:
        self.backend = backend
        self.observer = observer or NullObserver()
        self._device = device
        self._labels = labels or Labels(backend.outputs)
        self._method = choose_measured(method)
        self._ranking = Ranking(backend.reader, listed, threshold, most)

    @property
    def method(self) -> str:
        """The method of the maps that are measured."""
        return self._method

    def explain(
        self,
        pictures: Sequence[Tensor],
        tasks: Sequence[Task | None],
        plan: Plan = NOTHING,
        deadline: Deadline = FOREVER,
    ) -> list[Prediction | RequestError]:
        """Run one forward pass over a chunk of pictures, and make the maps that are asked for and those that are measured.

        Args:
            pictures: each `[3, H, W]`, float32, normalised, all of one size.
            tasks: one for each picture; None wants no explanation.
            plan: what is measured, at the default layer.
            deadline: looked at between backward passes; first come the maps that take the fewest.

        Returns:
            For each picture its prediction, or a 500 where its scores are not finite, or a 503 where time ran out.
        """
        started = time.perf_counter()
        layers = [layer for task in tasks if task for layer in task.layers] + [self.backend.layers[0]] * bool(plan.rows)
        with self.observer.stage("forward"):
            captured = self.backend.capture.forward(self._stack(pictures), list(dict.fromkeys(layers)))
            scores = self._ranking.read(captured.values, tasks)
        asked = [
            _MapTask(row, turn, target, task.layers, task.method)
            for row, task in enumerate(tasks)
            if task and scores.finite[row]
            for turn, target in enumerate(task.targets or self._ranking.choose_targets(scores, row, task.top_k))
        ]
        measured = {row: self._measured(row, scores.ranked[row][: plan.maps]) for row in plan.rows if scores.finite[row]}
        raw = self._make_maps(captured, asked, deadline)
        between = time.perf_counter()
        raw |= self._make_maps(captured, [each for several in measured.values() for each in several if each not in raw], deadline)
        self.observer.budget.add(len(pictures), between - started, time.perf_counter() - between)
        explanations = self._scale_maps([each for each in asked if each in raw], raw, scores.probabilities.cpu())
        logits = captured.values.cpu()
        grids = {layers: _grid_of(captured, layers) for layers in {task.layers for task in tasks if task}}
        answers: list[Prediction | RequestError] = [
            Prediction(
                tuple(Score(index, self._labels[index], probability) for index, probability in scores.listed[row]),
                tuple(explanations.get(row, ())),
                logits[row],
                tuple(raw[each].numpy() for each in measured.get(row, ()) if each in raw),
                grids[task.layers] if task else (0, 0),
            )
            if finite
            else RequestError(500, "InternalError", "the model's scores of this picture are not finite")
            for row, (finite, task) in enumerate(zip(scores.finite, tasks, strict=True))
        ]
        for row, task in {each.row: each for each in asked if each not in raw}.items():
            answers[row] = deadline.error(f"all maps of this picture were made, with {task.method}")
        return answers

    def score(self, pictures: Sequence[Tensor], targets: Sequence[int]) -> list[float]:
        """Return the probability, or the value, that the model gives each picture's class: NaN where it is not finite.

        Args:
            pictures: as `explain` takes them.
            targets: a class index for each.
        """
        with self.observer.stage("forward"):
            probabilities = self.backend.reader.probabilities(self.backend.capture.forward(self._stack(pictures), []).values)
        index = torch.tensor(targets, device=probabilities.device)[:, None]
        scores: list[float] = probabilities.float().gather(1, index)[:, 0].tolist()
        return scores

    def count_passes(self, task: Task | None) -> int:
        """Count the model's passes for one picture, forward and backward."""
        if task is None:
            return 1
        parts = zip(task.layers, list_methods(task.method, len(task.layers)), strict=True)
        free = self.backend.closed_form
        each = sum(1 + CONTRAST_CLASSES * method.contrasts for layer, method in parts if layer not in free)
        return 1 + each * (len(task.targets) or task.top_k or 1)

    def _stack(self, pictures: Sequence[Tensor]) -> Tensor:
        if self.backend.runtime.threads and self._device.type == "cpu":
            # torch's threads wait for more after each operator, for milliseconds, on cores that the runtime's want now
            return torch.from_numpy(np.stack([picture.numpy() for picture in pictures]))
        stacked = torch.stack(list(pictures)).to(self._device)
        return stacked.contiguous(memory_format=torch.channels_last) if self.backend.channels_last else stacked

    def _measured(self, row: int, targets: Sequence[int]) -> list[_MapTask]:
        """List the maps that are measured of one picture; often they are asked for anyway."""
        return [_MapTask(row, turn, target, self.backend.layers[:1], self._method) for turn, target in enumerate(targets)]

    def _make_maps(self, captured: Captured, tasks: Sequence[_MapTask], deadline: Deadline) -> dict[_MapTask, Tensor]:
        """Compute unscaled maps `[h, w]`, on the CPU; those that the deadline left no time for are missing.

        The t-th targets of all pictures share one backward pass. Where the gradients have a closed form no pass is needed, so
        all targets of a single picture are computed in one call. First come the rounds of few passes, which are somebody's last.
        """
        alone = len(captured.logits) == 1
        rounds: dict[tuple[tuple[str, ...], str, int], list[_MapTask]] = {}
        for task in dict.fromkeys(tasks):
            together = alone and not find_method(task.method).contrasts and captured.has_closed_form(task.layers[0])
            rounds.setdefault((task.layers, task.method, 0 if together else task.turn), []).append(task)
        raw: dict[_MapTask, Tensor] = {}
        if rounds:
            with self.observer.stage("backward"):
                for _, part in sorted(rounds.items(), key=lambda each: (find_method(each[0][1]).contrasts, each[0][2])):
                    spared = not raw and not find_method(part[0].method).contrasts  # one round at least: the forward pass has run
                    maps = self._make_round(captured, part, deadline) if spared or not deadline.over else None
                    if maps is not None:
                        raw.update(zip(part, maps.detach().cpu().unbind(), strict=True))
        return raw

    def _make_round(self, captured: Captured, tasks: Sequence[_MapTask], deadline: Deadline) -> Tensor | None:
        """Compute the maps `[M, h, w]` of M pictures, of the same layers and method; None where time runs out between passes."""
        layers = tasks[0].layers
        maps: list[Tensor] = []
        for layer, method in zip(layers, list_methods(tasks[0].method, len(layers)), strict=True):
            made = None if maps and deadline.over else self._make_layer(captured, tasks, layer, method, deadline)
            if made is None:
                return None
            maps.append(made)
        return maps[0] if len(maps) == 1 else refine(maps)

    def _make_layer(
        self, captured: Captured, tasks: Sequence[_MapTask], layer: str, method: Method, deadline: Deadline
    ) -> Tensor | None:
        """Compute the maps `[M, h, w]` of M pictures at one layer by one method; None where time runs out between two passes."""
        rows, targets = [task.row for task in tasks], [task.target for task in tasks]
        row_index = torch.tensor(rows, device=self._device)
        target_index = torch.tensor([_index(target) for target in targets], device=self._device)
        activation = captured.activation(layer)
        if len(rows) < len(activation):
            activation = activation[row_index]
        gradients = captured.gradients(layer, row_index, target_index)
        if any(target < 0 for target in targets):  # what lowers a value raises its negative
            signs = torch.tensor([-1.0 if target < 0 else 1.0 for target in targets], device=self._device)
            gradients = gradients * signs[:, None, None, None].to(gradients.dtype)
        if not method.contrasts:
            return method.function(activation, gradients)
        others = _contrast_classes(captured.logits[row_index], target_index)
        contrast = [captured.gradients(layer, row_index, other) for other in others.unbind(1) if not deadline.over]
        if len(contrast) < others.shape[1]:
            return None
        stacked = torch.stack(contrast, 1) if contrast else torch.zeros_like(gradients)[:, None]
        return method.function(activation, gradients, stacked)

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
                probability = float(probabilities[task.row, _index(task.target)])
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
        index, lowers = _index(target), target < 0
        label = f"-{self._labels[index]}" if lowers else self._labels[index]
        return Explanation(index, label, probability, heatmap, limits, None, warnings, lowers=lowers)


def _index(target: int) -> int:
    """Return the class of a target, which is `~index` where the map is of what lowers its value."""
    return ~target if target < 0 else target


def _grid_of(captured: Captured, layers: Sequence[str]) -> tuple[int, int]:
    """Return (rows, columns) of the map of a layer, or of several together, which is as fine as the finest."""
    shapes = [captured.activation(layer).shape for layer in layers]
    return max(shape[2] for shape in shapes), max(shape[3] for shape in shapes)


def _contrast_classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the most probable other classes `[M, R]` of each picture; R is smaller where there are fewer classes."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return torch.topk(others, min(CONTRAST_CLASSES, logits.shape[1] - 1), dim=1).indices
