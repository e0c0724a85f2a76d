"""Measures how far a model's maps tell the truth, by layer and method, on pictures: which layer, which method?

Grid pointing is that of Böhle et al. 2021 (arXiv 2104.00032), on mosaics of the model's own input size; insertion less deletion
that of `explain/faithfulness`; the likeness to another class's map, and to the map under weights drawn anew, are the checks of
Adebayo et al. 2018 (arXiv 1810.03292).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from camserve.capture.backend import Backend
from camserve.core.config import REFINECAM
from camserve.core.errors import ConfigError, RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Explanation, Layer, name_layer
from camserve.core.messages.checks import Check
from camserve.explain.areas import weigh_cells
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.faithfulness import LEAST as NOTHING
from camserve.explain.faithfulness import check_maps
from camserve.explain.ranking import Task
from camserve.pictures.bounds.limits import FOREVER
from camserve.tools.console import ToolError
from camserve.tools.reports.comparison.agreement import spearman

SEED = 0
"""Of all that is drawn at random."""

MOSAICS = 24
"""Of four pictures of different classes each."""

ROUNDS = 3
"""Timed explanations of each layer and method."""

BATCH = 16
"""Pictures in one forward pass."""

SAME = 1e-4
"""By how much two heatmaps may differ, and be checked as one."""

Open = Callable[[], Backend]
Candidate = tuple[Layer, str]
"""A layer and a method; of a method that takes several together, these."""

CPU = torch.device("cpu")


@dataclass
class Measured:
    """What was measured of one layer and method, one value for each picture; of mosaics one for each of their quarters.

    Attributes:
        pointing: the share of a class's map that lies in its own picture's quarter; chance is 0.25.
        gain: insertion less deletion, as a share of what hiding everything takes from the score; chance is about 0.
        support: what the brightest cells do more than others, see `Check.support`; chance is about 0.
        other_class: rank correlation of the map with that of another class; of little class dependence where it is near 1.
        random_weights: rank correlation with the map under weights drawn anew; it says nothing of the model where it is near 1.
        cost: time of an explanation over that of a prediction.
    """

    pointing: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    support: list[float] = field(default_factory=list)
    other_class: list[float] = field(default_factory=list)
    random_weights: list[float] = field(default_factory=list)
    cost: float = 1.0


@dataclass(frozen=True)
class Pictures:
    """What is measured on.

    Attributes:
        inputs: of the model, `[C, H, W]`, all of one size.
        targets: the class that the model predicts for each.
        others: another class for each, drawn at random; empty where there is none.
        mosaics: of four inputs each, of the same size.
        quarters: the four classes of each mosaic: upper left, upper right, lower left, lower right.
    """

    inputs: Sequence[Tensor]
    targets: Sequence[int]
    others: Sequence[int]
    mosaics: Sequence[Tensor]
    quarters: Sequence[tuple[int, ...]]


def arrange(explainer: Explainer, inputs: Sequence[Tensor], seed: int = SEED) -> Pictures:
    """Ask the model for each picture's class, draw others, and make mosaics of pictures of different classes."""
    random = np.random.default_rng(seed)
    layer = explainer.backend.layers[0]
    predictions = list(_explain(explainer, inputs, [Task(layer, "gradcam")] * len(inputs)))
    targets = [each.explanations[0].target for each in predictions]
    classes = explainer.backend.outputs
    others = [int((target + random.integers(1, classes)) % classes) for target in targets] if classes > 1 else []
    by_class: dict[int, list[int]] = {}
    for place, target in enumerate(targets):
        by_class.setdefault(target, []).append(place)
    mosaics, quarters = [], []
    for _ in range(MOSAICS if len(by_class) >= 4 else 0):
        chosen = [int(each) for each in random.choice(sorted(by_class), 4, replace=False)]
        mosaics.append(compose([inputs[int(random.choice(by_class[each]))] for each in chosen]))
        quarters.append(tuple(chosen))
    return Pictures(inputs, targets, others, mosaics, quarters)


def compose(four: Sequence[Tensor]) -> Tensor:
    """Compose a mosaic of four inputs `[C, H, W]`, rows first, of their own size: each is scaled down to its quarter."""
    height, width = four[0].shape[1:]
    down, across = (height // 2, height - height // 2), (width // 2, width - width // 2)
    cells = [
        functional.interpolate(each[None], (down[place // 2], across[place % 2]), mode="bilinear", antialias=True)[0]
        for place, each in enumerate(four)
    ]
    return torch.cat([torch.cat(cells[:2], 2), torch.cat(cells[2:], 2)], 1)


def measure(
    open_backend: Open,
    module: Any,
    inputs: Sequence[Tensor],
    methods: Sequence[str],
    tell: Callable[[str], None] = lambda _part: None,
) -> dict[Candidate, Measured]:
    """Measure every layer of a backend with every method.

    Args:
        open_backend: opens the model at the layers that are measured; it is opened once more with weights drawn anew.
        module: the model, whose parameters are drawn anew meanwhile.
        inputs: `[C, H, W]`, all of one size.
        methods: their names; one that takes several layers gets all of them.
        tell: is told which part of the work begins.
    """
    explainer = Explainer(open_backend(), CPU)
    pictures = arrange(explainer, inputs)
    candidates = list_candidates(explainer.backend, methods)
    found: dict[Candidate, Measured] = {}
    heatmaps: dict[Candidate, list[NDArray[np.float32]]] = {}
    checked: list[tuple[list[Explanation], list[Check | None]]] = []
    for place, candidate in enumerate(candidates, 1):
        tell(f"{place} of {len(candidates)}: {candidate[1]} of {name_layer(candidate[0])}")
        found[candidate] = Measured(cost=_cost(explainer, pictures.inputs[0], candidate))
        predictions = list(_explain(explainer, pictures.inputs, _tasks(candidate, pictures.targets)))
        heatmaps[candidate] = [each.explanations[0].heatmap for each in predictions]
        for prediction, check in zip(predictions, _check(explainer, pictures.inputs, predictions, checked), strict=True):
            found[candidate].gain.append(0.0 if check is None else _gain(prediction.explanations[0].probability, check))
            found[candidate].support.append(0.0 if check is None else check.support)
        if pictures.others:
            found[candidate].other_class = _likeness(explainer, pictures, candidate, pictures.others, heatmaps[candidate])
        found[candidate].pointing = list(_point(explainer, pictures, candidate))
    tell("with weights drawn anew")
    with draw_anew(module) as drawn:
        try:
            other = Explainer(open_backend(), CPU) if drawn else None
        except ConfigError:  # drawn anew, a layer may hardly matter any more
            other = None
        for candidate in candidates if other else ():
            found[candidate].random_weights = _likeness(other, pictures, candidate, pictures.targets, heatmaps[candidate])
    return found


def list_candidates(backend: Backend, methods: Sequence[str]) -> list[Candidate]:
    """List each layer with each method that takes one; all layers, where there are several, with the method that takes these."""
    single = [method for method in methods if method != REFINECAM]
    found: list[Candidate] = [(layer, method) for layer in backend.layers for method in single]
    several = REFINECAM in methods and len(backend.placed) > 1
    return found + ([(backend.placed, REFINECAM)] if several else [])


@contextmanager
def draw_anew(module: Any, seed: int = SEED) -> Iterator[bool]:
    """Shuffle each of a model's weights in itself, so that their sizes stay, and put them back; True where there are any."""
    generator = torch.Generator().manual_seed(seed)
    parameters = getattr(module, "parameters", None)
    weights = [each for each in parameters() if each.dim() > 1] if parameters else []
    before = [each.detach().clone() for each in weights]
    try:
        with torch.no_grad():
            for each in weights:
                order = torch.randperm(each.numel(), generator=generator)
                each.copy_(each.detach().flatten()[order].view_as(each))
        yield bool(weights)
    finally:
        with torch.no_grad():
            for each, values in zip(weights, before, strict=True):
                each.copy_(values)


def _tasks(candidate: Candidate, targets: Sequence[int]) -> list[Task]:
    return [Task(*candidate, (target,)) for target in targets]


def _explain(explainer: Explainer, inputs: Sequence[Tensor], tasks: Sequence[Task]) -> Iterator[Prediction]:
    for start in range(0, len(inputs), BATCH):
        for prediction in explainer.explain(inputs[start : start + BATCH], tasks[start : start + BATCH]):
            if isinstance(prediction, RequestError):
                raise ToolError(f"the model cannot be measured on these pictures: {prediction.message}")
            yield prediction


def _check(
    explainer: Explainer,
    inputs: Sequence[Tensor],
    predictions: Sequence[Prediction],
    checked: list[tuple[list[Explanation], list[Check | None]]],
) -> list[Check | None]:
    """Check each map; where another layer and method had the same heatmaps, by that: on some models methods are one."""
    explanations = [each.explanations[0] for each in predictions]
    for others, checks in checked:
        if all(_is_same(*pair) for pair in zip(explanations, others, strict=True)):
            return checks
    outcomes = check_maps(explainer, list(zip(inputs, predictions, strict=True)), BATCH, FOREVER)
    found = [None if isinstance(each, RequestError) else each.explanations[0].check for each in outcomes]
    checked.append((explanations, found))
    return found


def _is_same(one: Explanation, other: Explanation) -> bool:
    return one.heatmap.shape == other.heatmap.shape and bool(np.abs(one.heatmap - other.heatmap).max() <= SAME)


def _gain(whole: float, check: Check) -> float:
    """Return insertion less deletion, as a share of what the picture does to the score; 0 where that is next to nothing."""
    span = abs(whole - statistics.mean(check.empty.values()))
    return (check.insertion - check.deletion) / span if span > NOTHING * abs(whole) else 0.0


def _likeness(
    explainer: Explainer | None,
    pictures: Pictures,
    candidate: Candidate,
    targets: Sequence[int],
    heatmaps: Sequence[NDArray[np.float32]],
) -> list[float]:
    """Correlate each heatmap with that of a target; 0 where one of them is the same everywhere."""
    if explainer is None:
        return []
    predictions = _explain(explainer, pictures.inputs, _tasks(candidate, targets))
    pairs = [(one, each.explanations[0].heatmap) for one, each in zip(heatmaps, predictions, strict=True)]
    return [spearman(one.astype(np.float64), other.astype(np.float64)) or 0.0 for one, other in pairs]


def _point(explainer: Explainer, pictures: Pictures, candidate: Candidate) -> Iterator[float]:
    """Return the share of each class's map in its own quarter; 0 where the map says nothing."""
    tasks = [Task(*candidate, classes) for classes in pictures.quarters]
    for mosaic, prediction in zip(pictures.mosaics, _explain(explainer, pictures.mosaics, tasks), strict=True):
        height, width = mosaic.shape[1:]
        for place, each in enumerate(prediction.explanations):
            row, column = divmod(place, 2)
            top, left = row * (height // 2), column * (width // 2)
            box = Rect(left, top, width if column else width // 2, height if row else height // 2)
            yield _share(each, box, (width, height))


def _share(explanation: Explanation, box: Rect, size: tuple[int, int]) -> float:
    if explanation.warnings or explanation.range is None:
        return 0.0
    low, high = explanation.range
    values = explanation.heatmap.astype(np.float64) + low / (high - low)
    weights = weigh_cells(box, Rect(0, 0, *size), size, explanation.heatmap.shape)
    return float((weights * values).sum() / values.sum())


def _cost(explainer: Explainer, picture: Tensor, candidate: Candidate) -> float:
    ratios = []
    for turn in range(ROUNDS + 1):
        seconds = []
        for task in (None, Task(*candidate)):
            start = time.process_time()  # other programs take nothing from it
            explainer.explain([picture], [task])
            seconds.append(time.process_time() - start)
        ratios += [seconds[1] / seconds[0]] if turn else []
    return statistics.median(ratios)
