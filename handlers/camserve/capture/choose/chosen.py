"""Which layers are explained, and where their cells lie in the picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from camserve.capture.alignment.align import Aligned, align_layers
from camserve.capture.base import Classifier
from camserve.capture.choose.bypass import MAX_BYPASS, BypassTrial
from camserve.capture.choose.gradients import MAX_GRADIENT_ERROR
from camserve.capture.choose.layer import NO_CELL, choose_layer, find_faults
from camserve.capture.choose.members import JOIN, Members, list_members
from camserve.capture.survey.layers import MODEL_ERRORS, Survey
from camserve.core.config import Config
from camserve.core.errors import ConfigError

PLACED = 3
"""How many layers are tried before one of whose cells no trial tells where they lie."""

GRADIENT_ERROR = (
    "gradients do not say how the scores follow it: some of what is behind it is detached, runs in torch.no_grad(), or has a "
    "backward of its own, and its maps miss that"
)


class Chosen(NamedTuple):
    """The layers that are explained, the default first; see `backend.Backend`."""

    layers: tuple[str, ...]
    why: str
    bypass: Mapping[str, float | None]
    doubts: Mapping[str, str]
    class_token: bool
    earlier: bool
    cancels: bool


def choose_and_place(
    classifier: Classifier, pictures: Tensor, survey: Survey, config: Config, *, trial: BypassTrial, tell: Callable[[str], None]
) -> tuple[Chosen, dict[str, Aligned]]:
    """Choose the layers, and find where their cells lie; take an earlier one where those of the default are none.

    Latents that each gather the whole picture are no cells, though there may be as many as a grid has: no trial tells where they
    lie, and in pictures of another size there are as many.

    Raises:
        ConfigError: as `_choose_layers` and `align_layers` do.
    """

    def place(left: Survey) -> tuple[Chosen, dict[str, Aligned]]:
        chosen = _choose_layers(classifier, pictures, left, config.layers, trial)
        tell(f"finding where the cells of {chosen.layers[0]} lie in the picture")
        single = dict.fromkeys(name for layer in chosen.layers for name in list_members(layer, left))
        return chosen, align_layers(classifier, left, list(single), pictures, given=len(config.token_grid or ()) > 2)

    first, left = place(survey), survey
    found = first
    for _ in range(PLACED):
        untold = [name for name, each in found[1].items() if not each.told]
        if config.layers or not untold or not _stay(classifier, pictures, survey, untold):
            break
        left = left.leave_out(untold)
        try:
            found = place(left)
        except ConfigError:
            return first
        if (found[0].bypass[found[0].layers[0]] or 0) > MAX_BYPASS:
            return first
    if found is first or not all(each.told for each in found[1].values()):
        return first
    why = f"{found[0].why}; what {first[0].layers[0]} behind it gives are no cells: of pictures of any size there are as many"
    return found[0]._replace(why=why), found[1]


def add_doubts(
    chosen: Chosen,
    aligned: Mapping[str, Aligned],
    members: Mapping[str, Sequence[str]],
    trial: BypassTrial,
    closed: Collection[str],
) -> Chosen:
    """Add to the doubts of each layer that no trial shows where its cells lie, and that gradients miss some of what is behind it.

    Args:
        members: the layers that each stands for.
        closed: layers whose gradients are known in closed form, which a trial of the scores has shown.
    """
    untold = {layer: each.note for layer, each in aligned.items() if not each.told}
    errors = {layer: trial.measure_gradient_error(set(names).difference(closed)) for layer, names in members.items()}
    wrong = {layer: f"{GRADIENT_ERROR} ({error:.0%} apart)" for layer, error in errors.items() if error > MAX_GRADIENT_ERROR}
    several = {layer: [each.get(layer, "") for each in (chosen.doubts, wrong, untold)] for layer in aligned}
    return chosen._replace(doubts={layer: "; ".join(filter(None, texts)) for layer, texts in several.items() if any(texts)})


def _choose_layers(
    classifier: Classifier, pictures: Tensor, survey: Survey, asked: tuple[str, ...], trial: BypassTrial
) -> Chosen:
    """Choose the layer where none is asked for; measure what goes past each.

    Raises:
        ConfigError: a layer cannot be explained, or none is found.
    """
    layers, why = asked, ""
    search = Members(classifier, pictures, survey, trial)
    if not asked:
        layer, why = choose_layer(classifier, pictures, survey, trial)
        found = search.find(survey.info(layer))
        why = search.describe(found) if len(found) > 1 else why
        layers = (JOIN.join(info.name for info in found),)
    members = {layer: list_members(layer, survey) for layer in layers}
    doubts = {layer: search.check(names) for layer, names in members.items()}
    bypass = {layer: search.measure(names) for layer, names in members.items()}
    token = _reads_class_token(classifier, pictures, survey, trial)
    earlier = bool(why) and _lies_before_bypassed(layers[0], survey, trial)
    cancels = (token or earlier) and trial.cancels(survey.info(members[layers[0]][0]))
    return Chosen(layers, why, bypass, {layer: doubt for layer, doubt in doubts.items() if doubt}, token, earlier, cancels)


def _reads_class_token(classifier: Classifier, pictures: Tensor, survey: Survey, trial: BypassTrial) -> bool:
    """Return whether the prediction depends on no cell of the last map that has tokens beside its cells.

    Registers are such tokens too, and no class token: there the scores are read at the cells.
    """
    last = next((info for info in reversed(survey.maps) if info.layout is not None and info.layout.others > 0), None)
    return last is not None and find_faults(classifier, pictures, [last], survey.outputs, trial).get(last.name) == NO_CELL


def _stay(classifier: Classifier, pictures: Tensor, survey: Survey, names: Collection[str]) -> bool:
    """Return whether layers give as much of pictures of another size, where the first map of the model does not."""
    height, width = pictures.shape[2:]
    shapes = {info.name: info.shape for info in survey.maps}
    first = survey.maps[0].name
    for size in ((height // 2, width // 2), (2 * height, 2 * width)):
        try:
            resized = classifier.survey(functional.interpolate(pictures, size=size))
        except MODEL_ERRORS:
            continue
        other = {info.name: info.shape for info in resized.layers}
        return other.get(first) != shapes[first] and all(other.get(name) == shapes[name] for name in names)
    return False


def _lies_before_bypassed(layer: str, survey: Survey, trial: BypassTrial) -> bool:
    """Return whether nothing goes past this layer alone, and something past later ones."""
    names, passed = [info.name for info in survey.maps], trial.bypassed()
    return layer in names and layer not in passed and not set(names[names.index(layer) + 1 :]).isdisjoint(passed)
