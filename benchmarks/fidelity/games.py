"""Whether a map tells the truth: grid pointing, insertion less deletion, and what random targets and weights change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fidelity.scenes import SIDE, Classifier, Pixels, Seen, mosaic, picture
from camserve.explain.methods import CONTRAST_CLASSES, METHODS, gradcam_plus_plus

Candidate = Callable[[Seen, int], Tensor]
"""Makes a class's map `[h, w]` of a picture."""


def method(name: str) -> Candidate:
    """A method as it is served."""

    def made(seen: Seen, target: int) -> Tensor:
        contrasts = (
            [torch.stack([seen.gradient(each) for each in seen.contrasts(target, CONTRAST_CLASSES)], 1)]
            if METHODS[name].contrasts
            else []
        )
        found: Tensor = METHODS[name].function(seen.activation, seen.gradient(target), *contrasts)[0]
        return found

    return made


def finer(gamma: float, count: int) -> Candidate:
    """Finer-CAM: Grad-CAM of the target's logit less gamma times the mean of its contrast classes' logits."""

    def made(seen: Seen, target: int) -> Tensor:
        others = torch.stack([seen.gradient(each) for each in seen.contrasts(target, count)], 1)
        found: Tensor = METHODS["contrast"].function(seen.activation, seen.gradient(target), gamma * others)[0]
        return found

    return made


def less_contrasts(count: int) -> Candidate:
    """The target's Grad-CAM++ map less the mean of its contrast classes' Grad-CAM++ maps, rectified."""

    def made(seen: Seen, target: int) -> Tensor:
        others = torch.stack([gradcam_plus_plus(seen.activation, seen.gradient(each)) for each in seen.contrasts(target, count)])
        return (gradcam_plus_plus(seen.activation, seen.gradient(target)) - others.mean(0)).relu()[0]

    return made


def centre(seen: Seen, _target: int) -> Tensor:
    """A blob in the middle, whatever the picture: a Gaussian of a quarter of the side."""
    height, width = seen.activation.shape[2:]
    down, across = (torch.linspace(-1, 1, side + 1)[:-1] + 1 / side for side in (height, width))
    return torch.exp(-2 * (down[:, None] ** 2 + across[None, :] ** 2))


def noise(seed: int) -> Candidate:
    """A random map."""
    generator = torch.Generator().manual_seed(seed)
    return lambda seen, _target: torch.rand(seen.activation.shape[2:], generator=generator)


def grid_pointing(classifier: Classifier, classes: Mapping[str, int]) -> Iterator[tuple[Seen, int, int]]:
    """Each mosaic of four pictures as the model saw it, with a cell and its class. (Böhle et al. 2021, arXiv 2104.00032.)"""
    pictures = {name: picture(name) for name in classes}
    for names in itertools.combinations(classes, 4):
        seen = classifier.seen(mosaic([pictures[name] for name in names]))
        for cell, name in enumerate(names):
            yield seen, cell, classes[name]


def share_in_cell(found: Tensor, cell: int) -> float:
    """The share of a map that lies in one quarter; chance is 0.25."""
    quarter = found.unflatten(0, (2, -1)).unflatten(2, (2, -1))[cell // 2, :, cell % 2]
    return float(quarter.sum() / found.sum())


def peak_in_cell(found: Tensor, cell: int) -> bool:
    """Whether a map's largest value lies in one quarter."""
    row, column = divmod(int(found.argmax()), found.shape[1])
    return (row * 2 // found.shape[0], column * 2 // found.shape[1]) == divmod(cell, 2)


def insertion_less_deletion(classifier: Classifier, pixels: Pixels, found: Tensor, target: int, steps: int) -> float:
    """Petsiuk et al. 2018 (arXiv 1806.07421): the area under the target's probability as the map's brightest pixels are put
    into a blurred picture, less that as they are turned grey; both as shares of the whole picture's probability."""
    heat = cv2.resize(found.numpy(), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    rank = np.empty(SIDE * SIDE, np.int64)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(SIDE * SIDE)
    blurred, grey = cv2.GaussianBlur(pixels, (0, 0), 10), np.full_like(pixels, 127)
    marks = [(rank < share * SIDE * SIDE).reshape(SIDE, SIDE, 1) for share in np.linspace(0, 1, steps + 1)]
    inserted = classifier.probabilities([np.where(mark, pixels, blurred) for mark in marks], target)
    deleted = classifier.probabilities([np.where(mark, grey, pixels) for mark in marks], target)
    gain: NDArray[np.float32] = (inserted - deleted) / inserted[-1]
    return float(((gain[1:] + gain[:-1]) / 2).mean())


def likeness(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two maps; 0 where one of them is flat."""
    first, second = (_ranks(each.flatten()) for each in (one, other))
    first, second = first - first.mean(), second - second.mean()
    scale = first.norm() * second.norm()
    return float(first @ second / scale) if scale else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks as float64; equal values share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[inverse]
