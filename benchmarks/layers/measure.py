"""How much of a map lies in the object's box, at each layer of a network and by each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.layers.scenes import SIDE, Scenes
from camserve.capture import open_model, synthesize_pictures
from camserve.capture.choose.bypass import BypassTrial
from camserve.capture.choose.layer import choose_layer, find_faults
from camserve.capture.models.kinds import survey_model
from camserve.explain.methods import METHODS

NAMES = ("gradcam++", "gradcam", "hirescam", "layercam", "xgradcam")


@dataclass(frozen=True)
class Shown:
    """What the maps of one layer show, by one method.

    Attributes:
        share: of the map that lies in the object's box, the mean over the pictures; an empty map has none.
        peaks: the share of the maps whose brightest cell's centre is in the box.
        empty: how many maps are zero.
    """

    share: float
    peaks: float
    empty: int


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: its name.
        bypass: how much of the scores goes past it; None: not measured.
        shown: by the method's name.
    """

    name: str
    bypass: float | None
    shown: Mapping[str, Shown]


def measure(model: nn.Module, scenes: Scenes) -> tuple[str, list[Layer]]:
    """Return the name of the default layer, and what each layer that can be explained shows, from the last on."""
    pictures = synthesize_pictures((SIDE, SIDE))
    classifier = open_model(model, pictures)
    survey = survey_model(classifier, pictures)
    trial = BypassTrial(classifier, pictures)
    default = choose_layer(classifier, pictures, survey, trial)[0]
    infos = [info for info in survey.maps if not info.passes_through or info.name == default]
    faults = find_faults(classifier, pictures, infos, survey.outputs)
    usable = {info.name: info for info in reversed(infos) if info.name not in faults or info.name == default}
    captured = classifier.capture({name: info.site for name, info in usable.items()}).forward(scenes.pictures, list(usable))
    rows = torch.arange(len(scenes.classes))
    layers = []
    for name, info in usable.items():
        activation, gradients = captured.activation(name), captured.gradients(name, rows, scenes.classes)
        shown = {method: show(METHODS[method].function(activation, gradients), scenes.boxes) for method in NAMES}
        layers.append(Layer(name, trial.measure(info), shown))
    return default, layers


def show(maps: Tensor, boxes: Tensor) -> Shown:
    """Say how maps `[N, h, w]` lie to boxes `[N, 4]`."""
    cells = torch.stack([_cover(tuple(box), (maps.shape[1], maps.shape[2])) for box in boxes.tolist()])
    totals = maps.sum((1, 2))
    shares = torch.where(totals > 0, (maps * cells).sum((1, 2)) / totals.clamp(min=1e-30), 0)
    peaks = [bool(cover.flatten()[each.argmax()] >= 0.5) for cover, each in zip(cells, maps, strict=True) if each.any()]
    return Shown(float(shares.mean()), float(np.mean(peaks)) if peaks else 0.0, int((totals <= 0).sum()))


def _cover(box: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Return the share of each cell of a grid that a box covers, `[h, w]`."""
    left, top, right, bottom = box
    covered = partial(_overlap, SIDE)
    return torch.outer(covered(top, bottom, grid[0]), covered(left, right, grid[1]))


def _overlap(side: int, low: int, high: int, count: int) -> Tensor:
    edges = torch.linspace(0, side, count + 1)
    inside = torch.minimum(edges[1:], torch.tensor(float(high))) - torch.maximum(edges[:-1], torch.tensor(float(low)))
    return inside.clamp(min=0) * count / side
