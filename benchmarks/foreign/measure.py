"""What is found of one network: its layer, the bypass, where its cells lie, and the error of its heatmaps."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.support.comparison import oracle
from tests.support.comparison.alignment import Alignment, measure_alignment
from torch import Tensor, nn

from benchmarks.foreign.networks import Network
from camserve.capture import Backend, open_backend, open_model
from camserve.capture.choose.bypass import MAX_BYPASS, BypassTrial
from camserve.capture.choose.layer import find_faults
from camserve.capture.choose.members import JOIN
from camserve.capture.models.kinds import survey_model
from camserve.capture.models.views import join_views
from camserve.capture.survey.layers import View
from camserve.capture.survey.layout import extract_tensor, replace_tensor
from camserve.core.errors import ConfigError
from camserve.explain.methods import METHODS, scale_maps

FOCUS, SHARP, NEAR = 1.4, 3.0, 0.65
"""Where the cell that changes most moves less than so many times as far as all on average, no place can be told from another: the
first of cells that lie up to `NEAR` cells off, the second of others."""

EARLIER = (0.75, 0.5, 0.25)
"""Which earlier layers tell the place then, as shares of the way to the default layer."""

FLAT = 1e-3
"""Where a map's values lie closer together than so much of the largest, float32 cannot tell them as finely as from 0 to 1."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Found:
    """What is found of a network.

    Attributes:
        name: the network's.
        layer: the default layer; "" where the network is refused.
        grid: rows and columns of its map.
        bypass: how much of the scores goes past it; None: not measured.
        least: the least that goes past any layer that could be explained, where more than `MAX_BYPASS` goes past the default.
        alignment: the median distance, in cells, from where the picture was changed to where the map changed.
        shift: the median displacement, down and to the right, in cells.
        rest: the median distance beside that displacement.
        told_by: an earlier layer that was measured for this one, of whose cells each place changes all.
        error: the largest difference of a heatmap from the formula's in float64; of a map that is nearly flat, in shares of its
            largest value.
        refused: why the network is refused.
        mixes: whether each of its cells sees the whole picture.
    """

    name: str
    layer: str = ""
    grid: tuple[int, int] = (0, 0)
    bypass: float | None = None
    least: float | None = None
    alignment: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    rest: float = 0.0
    told_by: str = ""
    error: float = 0.0
    refused: str = ""


def measure(network: Network) -> Found:
    """Measure one network."""
    model, size = network.make(), (network.side, network.side)
    try:
        made = open_backend(model, network.config, size, CPU)
    except ConfigError as error:
        return Found(network.name, refused=str(error))
    (layer,) = made.layers
    share = made.bypass[layer]
    activation = made.capture.forward(network.pictures(), [layer]).activation(layer)
    told_by, found = alignment_of(made, model, network)
    return Found(
        network.name,
        layer,
        (activation.shape[2], activation.shape[3]),
        share,
        _least(model, network) if share is not None and share > MAX_BYPASS else None,
        found.distance,
        (found.down, found.right),
        found.rest,
        told_by,
        heatmap_error(made, model, network),
    )


def _least(model: nn.Module, network: Network) -> float:
    """Return the least bypass of all layers of several channels that can be explained, whatever the rule says of them."""
    pictures = network.pictures(seed=0)
    classifier = open_model(model, pictures)
    survey = survey_model(classifier, pictures)
    infos = [info for info in survey.maps if not info.passes_through]
    trial, faults = BypassTrial(classifier, pictures, survey.maps), find_faults(classifier, pictures, infos, survey.outputs)
    shares = [trial.measure(info) for info in infos if info.name not in faults]
    return min(share for share in shares if share is not None)


def alignment_of(made: Backend, model: nn.Module, network: Network) -> tuple[str, Alignment]:
    """Measure where the default layer's cells lie; or, where each place changes all of them, those of the last layer that tells.

    Returns:
        That earlier layer's name, "" where it is not needed, and what was measured.
    """
    (layer,) = made.layers
    found = _measure(made, layer, network)
    if _tells(found):
        return "", found
    before = [info.name for info in made.maps if not info.passes_through and "pad" not in info.name.rsplit(".", 1)[-1]]
    before = before[: before.index(layer)] if layer in before else before
    for name in dict.fromkeys(before[int(share * len(before))] for share in EARLIER):
        try:
            earlier = open_backend(model, dataclasses.replace(network.config, layers=(name,)), (network.side, network.side), CPU)
        except ConfigError:
            continue
        told = _measure(earlier, name, network)
        if _tells(told):
            return name, told
    return "nothing", found


def _tells(found: Alignment) -> bool:
    """Return whether a layer tells where its cells lie: that they lie where they should by little, elsewhere only by much."""
    near = max(abs(found.down), abs(found.right), found.rest) <= NEAR
    return found.focus >= (FOCUS if near else SHARP)


def _measure(made: Backend, layer: str, network: Network) -> Alignment:
    return measure_alignment(lambda x: made.capture.forward(x, [layer]).activation(layer), network.pictures(3, seed=20))


def heatmap_error(made: Backend, model: nn.Module, network: Network) -> float:
    """Return the largest difference of a heatmap, from 0 to 1, from the literal formula over float64's own autograd."""
    (layer,) = made.layers
    pictures = network.pictures()
    captured = made.capture.forward(pictures, [layer])
    targets = captured.logits.argmax(1)
    gradients = captured.gradients(layer, torch.arange(len(pictures)), targets)
    maps = METHODS["gradcam++"].function(captured.activation(layer), gradients)
    heatmaps, _, warnings = scale_maps(maps)
    exact = _exact(made, model, network, targets, tuple(maps.shape[1:]))
    ranges = [1 if (each.amax() - each.amin()) > FLAT * each.amax() else float(1 - each.amin() / each.amax()) for each in maps]
    return max(
        (
            float(np.abs(one - other).max()) * spread
            for one, other, odd, spread in zip(heatmaps, exact, warnings, ranges, strict=True)
            if not odd
        ),
        default=0.0,
    )


def _exact(
    made: Backend, model: nn.Module, network: Network, targets: Tensor, grid: tuple[int, ...]
) -> list[NDArray[np.float64]]:
    """Return the heatmaps by autograd through the whole network in float64, of all members and all views."""
    (layer,) = made.layers
    names = tuple(layer.split(JOIN))
    if len(names) > 1:
        config = dataclasses.replace(network.config, layers=names)
        made = open_backend(copy.deepcopy(model), config, (network.side, network.side), CPU)
    double = copy.deepcopy(model).double().eval()
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, output: Any) -> Any:
        tensor = extract_tensor(output)
        assert tensor is not None
        outputs[name].append(tensor)
        return replace_tensor(output, tensor * 1)  # whatever works in place behind the layer works on this

    handles = [double.get_submodule(name).register_forward_hook(lambda _m, _g, out, name=name: keep(name, out)) for name in names]
    try:
        with torch.enable_grad():
            answer = double(network.pictures().double().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    scores = getattr(answer, "logits", answer)
    scores = scores if isinstance(scores, Tensor) else scores[0]
    taken = []
    for name in names:
        site = made.aligned[name].site
        views = site.views or (View(site.calls, site.layout),)
        taken += [(view, outputs[name][view.call - 1]) for view in views]
    slopes = torch.autograd.grad(scores[torch.arange(len(targets)), targets].sum(), [output for _, output in taken])
    placed = [view for view, _ in taken]
    whole = join_views(placed, [view.layout.to_grid(output.detach()) for view, output in taken]).numpy()
    sums = join_views(placed, [view.layout.to_grid(each) for view, each in zip(placed, slopes, strict=True)], sums=True).numpy()
    maps = [oracle.gradcam_plus_plus(a, g, rectify_sum=True) for a, g in zip(whole, sums, strict=True)]
    return [oracle.heatmap(each) if each.max() > each.min() else np.zeros(grid) for each in maps]
