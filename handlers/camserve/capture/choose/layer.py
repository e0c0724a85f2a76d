"""Which layer to explain where none is named, and whether a layer that is named can be explained at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camserve.capture.base import Captured, Classifier
from camserve.capture.choose.cam_condition import find_cam_weights
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.layers import MODEL_ERRORS, POOL_INPUT, LayerInfo, Survey
from camserve.capture.survey.readings import UNKNOWN_GRID, UNKNOWN_ORDER
from camserve.core.errors import ConfigError

AT_ONCE = 8
"""How many layers one pass looks at: the default is mostly among the last few."""

INDEPENDENT = "the prediction does not depend on it"
DETACHED = (
    "the prediction depends on it, but no gradient reaches it: the model runs what is behind it in torch.no_grad() or "
    "torch.inference_mode(), or detaches it; its weights are frozen anyway, so take that out of its forward"
)
OVERWRITTEN = "its gradient needs values that the model overwrites (an operation in place behind it does)"
NO_CELL = "the prediction depends on none of its cells (perhaps on the class token beside them)"
ONE_CELL = "the prediction depends on a single cell of its map"
ONE_ROW = "the prediction depends on a single row of its map (perhaps it is no map, but the attention of the class token)"
SCORES = "its channels are the class scores"
PARTLY = "some of its channels are read at the class token only"
ALLOWED = (SCORES, PARTLY)
"""What the rule would not take, and is explained where it is asked for."""


def choose_layer(model: Classifier, pictures: Tensor, found: Survey) -> tuple[str, str]:
    """The layer to explain where none is named, and why: the last one whose map still decides the prediction.

    Skipped are layers that only pool or pass on, maps of class scores, and maps that the scores do not depend on, or in one
    cell or one row only (a vision transformer's last block: only its class token is read; of the last projection to queries,
    keys and values, the queries).

    Raises:
        ConfigError: the model has no such layer.
    """
    named = [info for info in found.maps if not info.passes_through and info.name != POOL_INPUT]
    candidates = [info for info in found.maps if info.name == POOL_INPUT] + named  # the first one is the last resort
    apart: list[LayerInfo] = []
    for start in range(len(candidates), 0, -AT_ONCE):
        part = candidates[max(0, start - AT_ONCE) : start]
        faults = find_faults(model, pictures, part, found.outputs)
        for info in reversed(part):
            if info.name not in faults:
                return info.name, _reason(info, found)
        apart += [info for info in reversed(part) if faults[info.name] == INDEPENDENT]
    cut = next((info for info in apart[:AT_ONCE] if _matters(model, pictures, info)), None)
    if cut:
        raise ConfigError(f"this model has no layer that can be explained; of {cut.name}, {DETACHED}")
    hint = f": {found.hint}" if found.hint and not found.hidden else ""
    doubtful = [info for info in found.layers if info.fault == UNKNOWN_ORDER]
    if doubtful:
        hint = f"{hint}; of {doubtful[-1].name}, whose output has the shape {list(doubtful[-1].shape)}, {UNKNOWN_ORDER}"
    raise ConfigError(f"this model has no layer with a spatial map that its prediction depends on{hint}")


def check_layer(model: Classifier, pictures: Tensor, found: Survey, name: str) -> None:
    """Refuses a layer whose map can show nothing.

    Raises:
        ConfigError: there is no such layer or map, or the prediction does not depend on more than one cell of it.
    """
    info = found.info(name)
    fault = find_faults(model, pictures, [info], found.outputs).get(name)
    if fault == INDEPENDENT and _matters(model, pictures, info):
        fault = DETACHED
    if fault and fault not in ALLOWED:
        raise ConfigError(f"layer {name} cannot be explained: {fault}{_instead(model, pictures, found)}")


def _instead(model: Classifier, pictures: Tensor, found: Survey) -> str:
    try:
        return f"; the rule would take {choose_layer(model, pictures, found)[0]}"
    except ConfigError:
        return ""


def find_faults(model: Classifier, pictures: Tensor, infos: Sequence[LayerInfo], outputs: int) -> dict[str, str]:
    """What speaks against explaining each of these layers; those without an objection are missing.

    It is looked at which cells and channels a gradient reaches, not how large it is there: the gradient starts as NaN, so a
    head of zeros (an untrained transformer's) or a dead unit hides nothing.
    """
    sites = {info.name: info.site for info in infos}
    try:
        captured = model.capture(sites).forward(pictures[:1], sites)
    except RuntimeError as error:
        if len(infos) == 1:
            return {infos[0].name: f"the model does not run with it taken out ({error})"}
        return {name: fault for info in infos for name, fault in find_faults(model, pictures, [info], outputs).items()}
    faults = {info.name: _objection(captured, info, outputs) for info in infos}
    missing = [fault in (INDEPENDENT, OVERWRITTEN) for name, fault in faults.items() if name != POOL_INPUT]
    if missing and all(missing):  # where there is no gradient none may be needed
        faults |= {info.name: "" for info in infos if find_cam_weights(model, info.site, pictures, outputs) is not None}
    return {name: fault for name, fault in faults.items() if fault}


def _matters(model: Classifier, pictures: Tensor, info: LayerInfo) -> bool:
    """Whether the scores change with the layer's output, by trial: a gradient may not show it."""
    pictures = fit_batch(pictures, model.batch)
    zeros = torch.zeros(info.site.layout.shape(len(pictures)), device=pictures.device)
    noise = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(1)).to(zeros)
    try:
        change = model.run_with(info.site, pictures, noise) - model.run_with(info.site, pictures, zeros)
    except MODEL_ERRORS:
        return False
    return bool(change.any())


def _objection(captured: Captured, info: LayerInfo, outputs: int) -> str:
    top = captured.logits.argmax(1)[:1]
    try:
        (gradient,) = captured.gradients(info.name, torch.zeros_like(top), top, seed=torch.nan)
    except RuntimeError as error:
        return OVERWRITTEN if "modified by an inplace operation" in str(error) else INDEPENDENT
    reached = gradient != 0
    cells, channels = int(reached.any(0).sum()), reached.flatten(1).any(1)
    if cells <= 1:
        return ONE_CELL if cells else NO_CELL
    lines = [(int(reached.any(0).any(axis).sum()), reached.shape[2 - axis]) for axis in (0, 1)]
    if any(line == 1 < lines_there for line, lines_there in lines):
        return ONE_ROW
    if info.layout and info.layout.extra and not channels.all():
        return PARTLY
    own = len(channels) == outputs > 1 and bool(channels[top].item()) and int(channels.sum()) == 1
    return SCORES if own else ""


def _reason(info: LayerInfo, found: Survey) -> str:
    layout = info.site.layout
    calls = f", at the last of its {info.calls} calls" if info.calls > 1 else ""
    extra = f" behind {layout.extra} other tokens" if layout.extra > 1 else ""
    return (
        f"the last of {len(found.maps)} layers with a map that the prediction depends on: "
        f"{layout.channels} channels, {layout.height}x{layout.width} cells{extra}{calls}{_untold(info, found)}"
    )


def _untold(info: LayerInfo, found: Survey) -> str:
    """A warning where layers behind this one give tokens that could be explained if it were known how they lie."""
    names = [each.name for each in found.layers]
    behind = [
        each for each in found.layers[names.index(info.name) + 1 :] if each.fault == UNKNOWN_GRID and not each.passes_through
    ]
    if not behind:
        return ""
    last = behind[-1]
    return (
        f"; but the {len(behind)} layers behind it that give tokens (as {last.name}, {list(last.shape)}) were left out, as "
        "nothing tells how these lie: --token-grid says it"
    )
