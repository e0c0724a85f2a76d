"""Which calls of a layer see the picture each for itself: a trunk that runs over several views, not an activation used again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import fit_batch
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, LayerInfo, Survey

MAX_VIEWS = 16
"""Most calls of one layer that are looked at: ten crops, or eight turns, with another picture or two."""

SAME = 1e-5
"""Tolerance between two runs, as a share of the largest value."""


def find_views(model: Classifier, pictures: Tensor, survey: Survey) -> Survey:
    """Find the layers of a trunk that runs over several views of the picture, whose calls then count together.

    Of the layers that run equally often the last one is tried: each of its calls is replaced, and where no later call changes,
    but the scores do, the calls are views. Where one goes into the next (an activation that a model uses again, a block that it
    repeats), the last call alone is the layer's.

    Args:
        pictures: `[N, C, H, W]`, those of the survey.

    Returns:
        The survey, with the views of each such layer.
    """
    repeated = {info.calls: info for info in survey.maps if 1 < info.calls <= MAX_VIEWS and _alike(info)}
    views = {calls: _find_views(model, fit_batch(pictures, model.batch), info) for calls, info in repeated.items()}
    layers = (
        replace(info, views=views.get(info.calls, ())) if info.cells > 1 and _alike(info) else info for info in survey.layers
    )
    return replace(survey, layers=tuple(layers))


def _alike(info: LayerInfo) -> bool:
    """Return whether all calls of a layer gave maps of one kind, perhaps of several sizes."""
    kinds = {(each.order, each.channels) if each else None for each in info.layouts}
    return len(kinds) == 1 and None not in kinds


def _find_views(model: Classifier, pictures: Tensor, info: LayerInfo) -> tuple[int, ...]:
    """Return the numbers of the calls that reach the scores without going through another; () where one goes into another."""
    generator = torch.Generator().manual_seed(5)
    found = []
    try:
        with disable_tf32():
            scores, outputs = model.run_calls((info.name,), pictures)
            calls = outputs[info.name]
            for place, output in enumerate(calls):
                noise = torch.randn(output.shape, generator=generator).to(output) * (output.float().std() + 1e-3).to(output)
                changed, after = model.run_calls((info.name,), pictures, {(info.name, place): noise})
                later = zip(calls[place + 1 :], after[info.name][place + 1 :], strict=True)
                if any(differ(old, new) for old, new in later):
                    return ()
                if differ(scores, changed):
                    found.append(place + 1)
    except MODEL_ERRORS:
        return ()
    return tuple(found) if len(found) > 1 and len(calls) == info.calls else ()


def differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors differ by more than sums in another order."""
    return bool((one - other).abs().max() > SAME * one.abs().max())
