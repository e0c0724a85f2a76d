"""Which layer to explain where none is named, and whether a layer that is named can be explained at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camserve.capture.base import Captured, Model
from camserve.capture.layers import POOL_INPUT, LayerInfo, Survey
from camserve.errors import ConfigError

AT_ONCE = 8
"""How many layers one pass looks at: the default is mostly among the last few."""

APART = "the prediction does not depend on it"
NO_CELL = "the prediction depends on none of its cells (perhaps on the class token beside them)"
ONE_CELL = "the prediction depends on a single cell of its map"
SCORES = "its channels are the class scores"
PARTLY = "some of its channels are read at the class token only"


def pick(model: Model, pictures: Tensor, found: Survey) -> tuple[str, str]:
    """The layer to explain where none is named, and why: the last one whose map still decides the prediction.

    Skipped are layers that only pool or pass on, maps of class scores, and maps that the scores do not depend on, or in one
    cell only (a vision transformer's last block: only its class token is read; of the last projection to queries, keys and
    values, the queries).

    Raises:
        ConfigError: the model has no such layer.
    """
    named = [info for info in found.maps if not info.passes and info.name != POOL_INPUT]
    candidates = [info for info in found.maps if info.name == POOL_INPUT] + named  # the first one is the last resort
    for start in range(len(candidates), 0, -AT_ONCE):
        part = candidates[max(0, start - AT_ONCE) : start]
        faults = objections(model, pictures, part, found.outputs)
        for info in reversed(part):
            if info.name not in faults:
                return info.name, _reason(info, found)
    hint = f": {found.hint}" if found.hint and not found.hidden else ""
    raise ConfigError(f"this model has no layer with a spatial map that its prediction depends on{hint}")


def check(model: Model, pictures: Tensor, found: Survey, name: str) -> None:
    """Refuses a layer whose map can show nothing.

    Raises:
        ConfigError: there is no such layer or map, or the prediction does not depend on more than one cell of it.
    """
    fault = objections(model, pictures, [found.info(name)], found.outputs).get(name)
    if fault in (APART, NO_CELL, ONE_CELL):
        instead, _ = pick(model, pictures, found)
        raise ConfigError(f"layer {name} cannot be explained: {fault}; the rule would take {instead}")


def objections(model: Model, pictures: Tensor, infos: Sequence[LayerInfo], outputs: int) -> dict[str, str]:
    """What speaks against explaining each of these layers; those without an objection are missing.

    It is looked at which cells and channels a gradient reaches, not how large it is there: the gradient starts as NaN, so a
    head of zeros (an untrained transformer's) or a dead unit hides nothing.
    """
    pictures = pictures[:1]
    sites = {info.name: info.site for info in infos}
    captured = model.capture(sites).forward(pictures, sites)
    faults = {info.name: _objection(captured, info, outputs) for info in infos}
    return {name: fault for name, fault in faults.items() if fault}


def _objection(captured: Captured, info: LayerInfo, outputs: int) -> str:
    top = captured.logits.argmax(1)[:1]
    try:
        (gradient,) = captured.gradients(info.name, torch.zeros_like(top), top, seed=torch.nan)
    except RuntimeError:
        return APART
    reached = gradient != 0
    cells, channels = int(reached.any(0).sum()), reached.flatten(1).any(1)
    if cells <= 1:
        return ONE_CELL if cells else NO_CELL
    if info.layout and info.layout.extra and not channels.all():
        return PARTLY
    own = len(channels) == outputs > 1 and bool(channels[top].item()) and int(channels.sum()) == 1
    return SCORES if own else ""


def _reason(info: LayerInfo, found: Survey) -> str:
    layout = info.site.layout
    calls = f", at the last of its {info.calls} calls" if info.calls > 1 else ""
    return (
        f"the last of {len(found.maps)} layers with a map that the prediction depends on: "
        f"{layout.channels} channels, {layout.height}x{layout.width} cells{calls}"
    )
