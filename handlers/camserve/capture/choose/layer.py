"""The rule that chooses the layer to explain where none is named, and the check of a layer that is named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camserve.capture.base import Captured, Classifier
from camserve.capture.choose.bypass import MAX_BYPASS, BypassTrial, describe_share
from camserve.capture.choose.gradients import find_cam_weights
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.layers import MODEL_ERRORS, POOL_INPUT, LayerInfo, Survey
from camserve.capture.survey.readings import UNKNOWN_GRID, UNKNOWN_ORDER
from camserve.core.errors import ConfigError

AT_ONCE = 8
"""How many layers are tried in one pass, from the last on; the default is mostly among the first eight."""

INDEPENDENT = "the prediction does not depend on it"
DETACHED = (
    "the prediction depends on it, but no gradient reaches it: the model runs what is behind it in torch.no_grad() or "
    "torch.inference_mode(), or detaches it; its weights are frozen anyway, so take that out of its forward"
)
QUANTIZED = (
    "the prediction depends on it, but no gradient reaches it: quantized layers behind it have none, and are no single linear "
    "layer behind pooling, whose gradients are known without; package the model as it was before it was quantized"
)
OVERWRITTEN = "its gradient needs values that the model overwrites (an operation in place behind it does)"
NO_CELL = "the prediction depends on none of its cells (perhaps on the class token beside them)"
ONE_CELL = "the prediction depends on a single cell of its map"
ONE_ROW = "the prediction depends on a single row of its map (perhaps it is no map, but the attention of the class token)"
SCORES = "its channels are the class scores"
PARTLY = "some of its channels are read at the class token only"
SAME = "every class has the same map there"
SINGLE = f"its map has a single channel, so {SAME}"
ALLOWED = (SCORES, PARTLY, SINGLE)
"""Faults that keep a layer from being the default, but not from being explained where it is asked for."""


def choose_layer(model: Classifier, pictures: Tensor, survey: Survey, trial: BypassTrial | None = None) -> tuple[str, str]:
    """Choose the layer to explain where none is named: the last one that decides the prediction and that nothing bypasses.

    Layers are skipped that only pool or pass on, whose map holds the class scores or a single channel, or whose map the scores do
    not depend on in more than one cell or one row. A vision transformer's last block is such a layer, because only its class
    token is read, and so is its last projection to queries, keys and values, of whose queries only the class token's is read.
    Past the norm before that projection goes the class token; nothing goes past the block before. Where something goes past
    every layer, that is taken past which least goes.

    Args:
        pictures: `[N, 3, H, W]`, those of the survey.
        trial: measures what goes past a layer; None: one that has measured nothing yet.

    Returns:
        The layer's name, and why it was chosen.

    Raises:
        ConfigError: the model has no such layer.
    """
    named = [info for info in survey.maps if not info.passes_through and info.name != POOL_INPUT]
    candidates = [info for info in survey.maps if info.name == POOL_INPUT] + named  # the first one is the last resort
    independent: list[LayerInfo] = []
    trial = trial or BypassTrial(model, pictures, survey.maps)
    found = _Found(trial)
    for start in range(len(candidates), 0, -AT_ONCE):
        part = candidates[max(0, start - AT_ONCE) : start]
        faults = find_faults(model, pictures, part, survey.outputs, trial)
        for info in reversed(part):
            if info.name not in faults and found.add(info):
                break
        independent += [info for info in reversed(part) if faults.get(info.name) == INDEPENDENT]
        found.last_resorts += [info for info in reversed(part) if faults.get(info.name) == SINGLE]
        if found.complete:
            break
    if best := found.best():
        return best.name, _reason(best, survey, found)
    detached = next((info for info in independent[:AT_ONCE] if _matters(model, pictures, info)), None)
    if detached:
        raise ConfigError(f"this model has no layer that can be explained; of {detached.name}, {_why_detached(model)}")
    hint = f": {survey.hint}" if survey.hint and not survey.hidden else ""
    doubtful = [info for info in survey.layers if info.fault == UNKNOWN_ORDER]
    if doubtful:
        hint = f"{hint}; of {doubtful[-1].name}, whose output has the shape {list(doubtful[-1].shape)}, {UNKNOWN_ORDER}"
    raise ConfigError(
        f"this model has no layer with a spatial map that its prediction depends on{hint}{_joined(survey, len(pictures))}"
    )


def _joined(survey: Survey, count: int) -> str:
    """Say what to do where layers run on several views of each picture at once, as one batch; "" where none does."""
    sizes = [info.shape[0] for info in survey.layers if len(info.shape) == 4 and info.shape[0] > count]
    times, rest = divmod(sizes[-1], count) if sizes else (0, 1)
    if rest:
        return ""
    return (
        f"; its layers run on {times} pictures for each one (views that its forward joins to a batch, such as crops or turns): "
        "let it run once for each view and add the scores up, then every view is explained at its place"
    )


class _Found:
    """The layers that could be explained, from the last on, and what goes past each.

    Args:
        trial: measures it.

    Attributes:
        shares: the bypass of each layer that was tried, in that order; None: not measured.
        last_resorts: layers whose map is the same for every class.
        complete: whether no further layer need be tried.
    """

    def __init__(self, trial: BypassTrial) -> None:
        self._trial = trial
        self._infos: list[LayerInfo] = []
        self.shares: dict[str, float | None] = {}
        self.last_resorts: list[LayerInfo] = []
        self.complete = False

    def add(self, info: LayerInfo) -> bool:
        """Measure what goes past a layer; return whether no further one need be tried.

        Where nothing goes past it, and its map is the same for every class, so is that of each layer before it.
        """
        self.shares[info.name] = self._trial.measure(info)
        self.complete = (self.shares[info.name] or 0) <= MAX_BYPASS
        if self.complete and not self._trial.depends_on_class(info):
            self.last_resorts.insert(0, info)
        else:
            self._infos.append(info)
        return self.complete

    def best(self) -> LayerInfo | None:
        """Return the layer past which least goes, of equal ones the last."""
        for info in sorted(self._infos, key=lambda info: round(self.shares[info.name] or 0, 2)):
            if not self.last_resorts or self._trial.depends_on_class(info):
                return info
        return self.last_resorts[0] if self.last_resorts else None


def check_layer(model: Classifier, pictures: Tensor, survey: Survey, name: str, trial: BypassTrial) -> str:
    """Refuse a layer whose map can show nothing; return what else speaks against it, "" where nothing does.

    Args:
        pictures: `[N, 3, H, W]`, those of the survey.
        trial: measures what goes past it.

    Raises:
        ConfigError: there is no such layer or map, or the prediction does not depend on more than one cell of it.
    """
    info = survey.info(name)
    fault = find_faults(model, pictures, [info], survey.outputs, trial).get(name, "")
    if fault == INDEPENDENT and _matters(model, pictures, info):
        fault = _why_detached(model)
    if fault and fault not in ALLOWED:
        raise ConfigError(f"layer {name} cannot be explained: {fault}{_instead(model, pictures, survey)}")
    share = trial.measure(info) or 0
    if share > MAX_BYPASS:
        return f"{describe_share(share)} past it, which its maps cannot show"
    return fault or ("" if trial.depends_on_class(info) else SAME)


def _instead(model: Classifier, pictures: Tensor, survey: Survey) -> str:
    try:
        return f"; the rule would take {choose_layer(model, pictures, survey)[0]}"
    except ConfigError:
        return ""


def find_faults(
    model: Classifier, pictures: Tensor, infos: Sequence[LayerInfo], outputs: int, trial: BypassTrial | None = None
) -> dict[str, str]:
    """Tell what speaks against explaining each of these layers.

    What counts is which cells and channels the gradient reaches, not how large it is there. So the backward pass starts with
    NaN, which a head of zeros (an untrained transformer's) or a dead unit does not hide.

    Args:
        pictures: `[N, 3, H, W]`, of which the first is used.
        outputs: number of the model's classes.
        trial: of these pictures; what it knows is not tried again, and its passes are used.

    Returns:
        The fault of each layer that has one, by the layer's name.
    """
    if trial is None:
        return _find_faults(model, pictures, infos, outputs, None)
    fresh = [info for info in infos if info.name not in trial.faults]
    if fresh:
        found = _find_faults(model, pictures, fresh, outputs, trial.capture(fresh))
        trial.faults |= {info.name: found.get(info.name, "") for info in fresh}
    return {info.name: trial.faults[info.name] for info in infos if trial.faults[info.name]}


def _find_faults(
    model: Classifier, pictures: Tensor, infos: Sequence[LayerInfo], outputs: int, captured: Captured | None
) -> dict[str, str]:
    sites = {info.name: info.site for info in infos}
    try:
        captured = captured or model.capture(sites).forward(pictures[:1], sites)
    except RuntimeError as error:
        if len(infos) == 1:
            return {infos[0].name: f"the model does not run with it taken out ({error})"}
        return {name: fault for info in infos for name, fault in find_faults(model, pictures, [info], outputs).items()}
    faults = {info.name: _fault_of(captured, info, outputs) for info in infos}
    without_gradient = [fault in (INDEPENDENT, OVERWRITTEN) for name, fault in faults.items() if name != POOL_INPUT]
    if without_gradient and all(without_gradient):  # under the CAM condition none is needed
        faults |= {info.name: "" for info in infos if find_cam_weights(model, info.site, pictures, outputs) is not None}
    return {name: fault for name, fault in faults.items() if fault}


def _why_detached(model: Classifier) -> str:
    return QUANTIZED if any(weight.is_quantized for weight in model.weights()) else DETACHED


def _matters(model: Classifier, pictures: Tensor, info: LayerInfo) -> bool:
    """Return whether the scores change with the layer's output, by trial: a gradient may not show it."""
    pictures = fit_batch(pictures, model.batch)
    zeros = torch.zeros(info.site.layout.shape(len(pictures)), device=pictures.device)
    noise = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(1)).to(zeros)
    try:
        change = model.run_with(info.site, pictures, noise) - model.run_with(info.site, pictures, zeros)
    except MODEL_ERRORS:
        return False
    return bool(change.any())


def _fault_of(captured: Captured, info: LayerInfo, outputs: int) -> str:
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
    if any(lines_reached == 1 < lines_in_all for lines_reached, lines_in_all in lines):
        return ONE_ROW
    if info.layout and info.layout.others and not channels.all():
        return PARTLY
    if len(channels) == outputs > 1 and bool(channels[top].item()) and int(channels.sum()) == 1:
        return SCORES
    return SINGLE if len(channels) == 1 else ""


def _reason(info: LayerInfo, survey: Survey, found: _Found) -> str:
    layout = info.site.layout
    calls = f", at the last of its {info.calls} calls" if info.calls > 1 and not info.views else ""
    extra = f" beside {layout.others} other tokens" if layout.others > 1 else ""
    return (
        f"the last of {len(survey.maps)} layers with a map that the prediction depends on: "
        f"{layout.channels} channels, {layout.height}x{layout.width} cells{extra}{calls}"
        f"{_bypassed(info, found)}{_warning(info, survey)}"
    )


def _bypassed(info: LayerInfo, found: _Found) -> str:
    """Say what goes past the layer, or past the last one where that was not taken for it; "" where nothing is to be said."""
    if info in found.last_resorts:
        return f"; but {SAME}, and no other layer fits"
    last, share = next(iter(found.shares.items()))
    own = found.shares[info.name] or 0.0
    if own > MAX_BYPASS:
        return f"; {describe_share(own)} past it, and past every other as much or more"
    return f"; nothing goes past it, where {describe_share(share)} past {last}" if share and info.name != last else ""


def _warning(info: LayerInfo, survey: Survey) -> str:
    """Warn where layers behind this one give tokens that could be explained if their grid were known; "" otherwise."""
    names = [each.name for each in survey.layers]
    behind = [
        each for each in survey.layers[names.index(info.name) + 1 :] if each.fault == UNKNOWN_GRID and not each.passes_through
    ]
    if not behind:
        return ""
    last = behind[-1]
    return (
        f"; but the {len(behind)} layers behind it that give tokens (as {last.name}, {list(last.shape)}) were left out, as "
        "nothing tells how these lie: --token-grid says it"
    )
