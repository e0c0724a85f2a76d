"""What the maps of each layer of a network show, by each method: how much of them lies in the object's box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.layers.scenes import SIDE, Scenes
from camserve.capture import open_model, synthesize_pictures
from camserve.capture.alignment.align import align_layers
from camserve.capture.base import Captured, Classifier
from camserve.capture.choose.bypass import BypassTrial
from camserve.capture.choose.layer import SINGLE, choose_layer, find_faults
from camserve.capture.models.kinds import survey_model
from camserve.capture.survey.layers import LayerInfo, Site, Survey
from camserve.core.errors import ConfigError
from camserve.explain.methods import METHODS

NAMES = ("gradcam++", "gradcam", "hirescam", "layercam")


@dataclass(frozen=True)
class Shown:
    """What the maps of one layer show, by one method.

    Attributes:
        share: of the map that lies in the object's box, the mean over pictures of one shape; an empty map has none.
        apart: on pictures of two shapes, the share in the box of the one that is asked for, less the share in the other's box.
        empty: how many maps are zero.
    """

    share: float
    apart: float
    empty: int


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: its name.
        bypass: how much of the scores goes past it; None: not measured.
        grid: rows and columns of its map.
        shown: by the method's name; of a layer that cannot be explained, nothing.
    """

    name: str
    bypass: float | None
    grid: tuple[int, int]
    shown: Mapping[str, Shown]


@dataclass(frozen=True)
class Measured:
    """What was measured of a network.

    Attributes:
        default: the name of the default layer.
        last: the name of the last layer that the scores depend on in more than one cell, which was the default before the bypass
            was measured.
        layers: those that can be explained, from the last on.
    """

    default: str
    last: str
    layers: Sequence[Layer]


def measure(model: nn.Module, scenes: Scenes, pairs: Scenes) -> Measured:
    """Measure what each layer shows of pictures of one shape, and of two."""
    pictures = synthesize_pictures((SIDE, SIDE))
    classifier = open_model(model, pictures)
    survey = survey_model(classifier, pictures)
    trial = BypassTrial(classifier, pictures, survey.maps)
    default = choose_layer(classifier, pictures, survey, trial)[0]
    infos = [info for info in survey.maps if not info.passes_through or info.name == default]
    faults = find_faults(classifier, pictures, infos, survey.outputs)
    usable = [info for info in reversed(infos) if faults.get(info.name, SINGLE) == SINGLE or info.name == default]
    sites = _align(classifier, survey, default, usable)
    capture = classifier.capture(sites)
    captured = [capture.forward(each.pictures, list(sites)) for each in (scenes, pairs)]
    layers: list[Layer] = []
    for info in usable:
        shown = _show_all(info.name, captured, (scenes, pairs))
        if not layers or shown != layers[-1].shown or info.name == default:  # else the module that holds it gives the same
            bypass = trial.measure(info)
            layers.append(Layer(info.name, bypass and round(bypass, 4), sites[info.name].layout.grid, shown))
    return Measured(default, usable[0].name, layers)


def _align(classifier: Classifier, survey: Survey, default: str, infos: Sequence[LayerInfo]) -> dict[str, Site]:
    """Return where the layers' cells lie: tokens lie at each as at the default layer."""
    token = next((info for info in infos if info.site.layout.others), None)
    name = default if survey.info(default).site.layout.others or token is None else token.name
    sites = {info.name: info.site for info in infos}
    try:
        found = align_layers(classifier, survey, [name], synthesize_pictures((SIDE, SIDE))[:1])[name].site.layout
    except ConfigError:  # no trial tells it, as over a trained ResNet; the networks here have their other tokens first
        return sites
    for layer, site in sites.items():
        if site.layout.others == found.others and site.layout.order == found.order:
            sites[layer] = replace(site, layout=replace(found, channels=site.layout.channels))
    return sites


def _show_all(layer: str, captured: Sequence[Captured], scenes: Sequence[Scenes]) -> dict[str, Shown]:
    gradients = [
        each.gradients(layer, torch.arange(len(drawn.classes)), drawn.classes)
        for each, drawn in zip(captured, scenes, strict=True)
    ]
    activations = [each.activation(layer) for each in captured]
    found = {}
    for name in NAMES:
        maps, of_pairs = (METHODS[name].function(*each) for each in zip(activations, gradients, strict=True))
        found[name] = show(maps, of_pairs, scenes[0], scenes[1])
    return found


def show(maps: Tensor, of_pairs: Tensor, scenes: Scenes, pairs: Scenes) -> Shown:
    """Say how maps `[N, h, w]` lie to the boxes of pictures of one shape, and of two."""
    if pairs.others is None:
        raise ValueError("pairs have two shapes")
    apart = _share(of_pairs, pairs.boxes) - _share(of_pairs, pairs.others)
    empty = int((maps.sum((1, 2)) <= 0).sum())
    return Shown(round(float(_share(maps, scenes.boxes).mean()), 4), round(float(apart.mean()), 4), empty)


def _share(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of each map that lies in its box; 0 of an empty map."""
    cells = torch.stack([_cover(tuple(box), (maps.shape[1], maps.shape[2])) for box in boxes.tolist()])
    totals = maps.sum((1, 2))
    return torch.where(totals > 0, (maps * cells).sum((1, 2)) / totals.clamp(min=1e-30), 0)


def _cover(box: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Return the share of each cell of a grid that a box covers, `[h, w]`."""
    left, top, right, bottom = box
    covered = partial(_overlap, SIDE)
    return torch.outer(covered(top, bottom, grid[0]), covered(left, right, grid[1]))


def _overlap(side: int, low: int, high: int, count: int) -> Tensor:
    edges = torch.linspace(0, side, count + 1)
    inside = torch.minimum(edges[1:], torch.tensor(float(high))) - torch.maximum(edges[:-1], torch.tensor(float(low)))
    return inside.clamp(min=0) * count / side
