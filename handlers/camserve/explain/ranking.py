"""Ranks the classes of each picture: which are listed, which are explained where none is asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.survey.reader import OutputReader
from camserve.core.messages import Layer, Options, list_layers

logger = logging.getLogger(__name__)

TOP_CLASSES = 5
"""How many classes a prediction lists, as the stock handler does."""


@dataclass(frozen=True)
class Task:
    """What is to be explained of one picture.

    Attributes:
        layer: whose activation is weighted; several, in the order in which they run, where the method takes them together.
        method: its name.
        targets: class indices, `~index` for what lowers a value; empty: the `top_k` most probable classes.
        top_k: no meaning where `targets` are given. None: those that count, see `Ranking.choose_targets`.
    """

    layer: Layer
    method: str
    targets: tuple[int, ...] = ()
    top_k: int | None = 1

    @classmethod
    def of(cls, options: Options) -> Task:
        """Return what a picture's options ask for."""
        return cls(options.layer, options.method, options.targets, options.top_k)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer, or each of several."""
        return list_layers(self.layer)


@dataclass(frozen=True)
class Ranked:
    """What the scores of a chunk's pictures say.

    Attributes:
        probabilities: `[N, K]`; the values, where the scores are no probabilities.
        listed: (index, probability) of each picture's listed classes, most probable first; of values, in their own order.
        ranked: each picture's most probable classes, as many as its task needs, and at least two.
        finite: whether each picture's scores are finite.
    """

    probabilities: Tensor
    listed: list[list[tuple[int, float]]]
    ranked: list[list[int]]
    finite: list[bool]


@dataclass(frozen=True)
class Ranking:
    """Ranks classes by what a model gives.

    Attributes:
        reader: says what the scores are.
        listed: how many classes a prediction lists; of several labels at once, all others too that reach the threshold.
        threshold: probability from which on a label counts.
        most: how many labels may be explained where none is asked for.
    """

    reader: OutputReader
    listed: int = TOP_CLASSES
    threshold: float = 0.5
    most: int = 10

    def read(self, own: Tensor, tasks: Sequence[Task | None]) -> Ranked:
        """Read what the model gives, `[N, K]`, or `[N, 1]` of one logit; rows that are not finite are logged."""
        probabilities = self.reader.probabilities(own)
        classes = probabilities.shape[1]
        # sigmoids of large scores are all 1, and would tie; values have no order but their own
        ranking = own if self.reader.kind == "sigmoid" else probabilities
        if self.reader.kind == "none":
            ranking = -torch.arange(classes, device=own.device).expand_as(own)
        count = classes if self.reader.kind == "none" else min(self.listed, classes)
        if self.reader.kind == "sigmoid":
            count = max(count, int((probabilities >= self.threshold).sum(1).max()))
        indices = torch.topk(ranking, count, dim=1).indices  # as the stock handler, with its k
        values, order = probabilities.gather(1, indices).tolist(), indices.tolist()
        depths = (max(2, (task and task.top_k) or 1) for task in tasks)
        ranked = [_rank(*each) for each in zip(ranking, order, depths, strict=True)]
        finite = torch.isfinite(own).all(1).tolist()
        if not all(finite):
            logger.error("camserve: the model's scores of %d of %d pictures are not finite", finite.count(False), len(finite))
        listed = [self._cut(list(zip(*each, strict=True))) for each in zip(order, values, strict=True)]
        return Ranked(probabilities, listed, ranked, finite)

    def _cut(self, ranked: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Return those of a picture's ranked labels that are listed, whatever its neighbours in the chunk have."""
        if self.reader.kind != "sigmoid":
            return ranked
        return [each for place, each in enumerate(ranked) if place < self.listed or each[1] >= self.threshold]

    def choose_targets(self, scores: Ranked, row: int, top_k: int | None) -> list[int]:
        """Choose the classes to explain of a picture for which none is named.

        That is the most probable one where `top_k` is None; of several labels at once, each whose probability reaches the
        threshold, which may be none; of one logit's two classes, the positive one where its probability does; of values, the
        first.
        """
        if top_k is None and self.reader.binary:
            return [int(scores.probabilities[row, 1] >= self.threshold)]
        if top_k is None and self.reader.kind == "sigmoid":
            return [index for index, probability in scores.listed[row] if probability >= self.threshold][: self.most]
        return scores.ranked[row][: top_k or 1]


def _rank(ranking: Tensor, listed: list[int], depth: int) -> list[int]:
    """Return the `depth` most probable classes of one picture, the listed ones first.

    Which of equal probabilities `topk` takes, and in which order, depends on k: no neighbour's k may decide it.
    """
    if depth <= len(listed):
        return listed
    more = torch.topk(ranking, min(depth, len(ranking))).indices.tolist()
    return [*listed, *(each for each in more if each not in listed)][:depth]
