"""Layers that are explained together: the last of each member of an ensemble, or of each branch that is joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.bypass import MAX_BYPASS, BypassTrial, describe_share
from camserve.capture.choose.layer import ALLOWED, check_layer, find_faults
from camserve.capture.models.calls import differ
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.layers import MODEL_ERRORS, POOL_INPUT, LayerInfo, Survey
from camserve.core.errors import ConfigError

JOIN = " + "
"""Between the names of layers that are explained together."""

MAX_MEMBERS = 8
"""Most members of a network that are looked for."""

GAIN = 0.05
"""A layer is another member's if so much less goes past where it is held too."""

LATEST = 8
"""How many of the last layers are looked at for one of a later stage."""

MAX_REFUSED = 8
"""Of so many layers that would hold more of the scores but go into those that were found, or come from them, the search ends:
in a network whose blocks all add to one sum every layer is such a one."""

FEW = 32
"""Of more layers every fourth is tried first, then those around one that is another member's."""


def list_members(name: str, survey: Survey) -> tuple[str, ...]:
    """Return the layers that a name stands for: `a.layer4 + b.layer4` for two, any other for itself."""
    return split_name(name, [info.name for info in survey.layers])


def split_name(name: str, known: Collection[str]) -> tuple[str, ...]:
    """Return a name of `known` layers as it is, and any other as those of the layers that it stands for."""
    if name in known:
        return (name,)
    return tuple(dict.fromkeys(part.strip() for part in name.split(JOIN.strip())))


class Members:
    """Looks for the members of a network, and measures and checks layers that are explained together.

    Args:
        model: the model.
        pictures: `[N, C, H, W]`, those of the survey.
        survey: of the model.
        trial: measures what goes past layers.
    """

    def __init__(self, model: Classifier, pictures: Tensor, survey: Survey, trial: BypassTrial) -> None:
        self._model = model
        self._pictures = pictures
        self._survey = survey
        self._trial = trial

    def find(self, first: LayerInfo) -> tuple[LayerInfo, ...]:
        """Find the layers past which, together with the best single one, nothing goes, and of which none goes into another.

        An ensemble has no layer that nothing bypasses: past each member's go the others. Past each of several branches that a
        network joins without a module for it go the others too; then the best single layer is one of an earlier stage, before
        all branches, and those of the last stage are better where they leave nothing out.

        Returns:
            The layers in the order in which they run; `first`, the best single one, alone where no other helps.
        """
        if (self._trial.measure(first) or 0) > MAX_BYPASS:
            return self._grow(first)
        last = self._find_last(first)
        branches = self._grow(last) if last else (first,)
        return branches if (self._trial.measure_together(branches) or 0) <= MAX_BYPASS else (first,)

    def _find_last(self, first: LayerInfo) -> LayerInfo | None:
        """Return the last layer that could be explained, where its map is of a later stage than that of `first`; else None."""
        maps = self._survey.maps
        later = [info for info in self._list_maps([first]) if maps.index(info) > maps.index(first)][:LATEST]
        if all(info.cells >= first.cells for info in later):
            return None
        faults = find_faults(self._model, self._pictures, later, self._survey.outputs)
        last = next((info for info in later if info.name not in faults and self._trial.depends_on_class(info)), None)
        return last if last and last.cells < first.cells else None

    def _list_maps(self, found: Sequence[LayerInfo]) -> list[LayerInfo]:
        """List the maps that could stand beside those that were found, the last first."""
        maps = [info for info in self._survey.maps if not info.passes_through and info.name != POOL_INPUT and info not in found]
        return [info for info in reversed(maps) if info.layout and info.layout.channels > 1]

    def _grow(self, first: LayerInfo) -> tuple[LayerInfo, ...]:
        """Add layers to this one while that lets less go past."""
        found = [first]
        share = self._trial.measure(first)
        while share is not None and share > MAX_BYPASS and len(found) < MAX_MEMBERS:
            added = self._find_next(found, share)
            if added is None:
                break
            found.append(added)
            share = self._trial.measure_together(found)
        return tuple(info for info in self._survey.maps if info in found)

    def _find_next(self, found: Sequence[LayerInfo], share: float) -> LayerInfo | None:
        """Find the last layer of another member."""
        maps = self._list_maps(found)
        step = 1 if len(maps) <= FEW else 4
        refused: set[str] = set()
        for start in range(0, len(maps), step):
            least = self._trial.measure_together([*found, maps[start : start + step][-1]])
            if least is None or least > share - GAIN:
                continue
            for info in maps[max(0, start - step) : start + step]:
                past = self._trial.measure_together([*found, info])
                if past is None or past > least + GAIN or info.name in refused:
                    continue
                if self._fits(found, info):
                    return info
                refused.add(info.name)
                if len(refused) >= MAX_REFUSED:
                    return None
        return None

    def _fits(self, found: Sequence[LayerInfo], info: LayerInfo) -> bool:
        """Return whether a layer goes into none of the others nor they into it, can be explained, and depends on the class."""
        if any(self._goes_into(*pair) for each in found for pair in ((info, each), (each, info))):
            return False
        return not find_faults(self._model, self._pictures, [info], self._survey.outputs) and self._trial.depends_on_class(info)

    def _goes_into(self, one: LayerInfo, other: LayerInfo) -> bool:
        """Return whether the second layer's output changes with the first's, by trial."""
        pictures = fit_batch(self._pictures, self._model.batch)
        try:
            _, outputs = self._model.run_calls((one.name, other.name), pictures)
            generator = torch.Generator().manual_seed(7)
            noise = {}
            for place, output in enumerate(outputs[one.name]):
                drawn = torch.randn(output.shape, generator=generator).to(output)
                noise[one.name, place] = drawn * (output.float().std() + 1e-3).to(output)
            _, after = self._model.run_calls((other.name,), pictures, noise)
        except MODEL_ERRORS:
            return True
        return any(differ(old, new) for old, new in zip(outputs[other.name], after[other.name], strict=True))

    def measure(self, names: Sequence[str]) -> float | None:
        """Return what goes past these layers; None: it cannot be measured."""
        return self._trial.measure_together([self._survey.info(name) for name in names])

    def check(self, names: Sequence[str]) -> str:
        """Refuse layers that cannot be explained together; return what else speaks against them, "" where nothing does.

        Raises:
            ConfigError: there is no such layer or map, the prediction does not depend on it, or one goes into another.
        """
        if len(names) == 1:
            return check_layer(self._model, self._pictures, self._survey, names[0], self._trial)
        infos = [self._survey.info(name) for name in names]
        for info in infos:
            fault = find_faults(self._model, self._pictures, [info], self._survey.outputs).get(info.name, "")
            if fault and fault not in ALLOWED:
                raise ConfigError(f"layer {info.name} cannot be explained: {fault}")
        for one in infos:
            into = next((other for other in infos if one is not other and self._goes_into(one, other)), None)
            if into:
                raise ConfigError(
                    f"layers {one.name} and {into.name} cannot be explained together: the first goes into the second, and would "
                    f"count twice; ask for each by itself (--layer {one.name} --layer {into.name})"
                )
        share = self.measure(names) or 0
        return f"{describe_share(share)} past them, which their maps cannot show" if share > MAX_BYPASS else ""

    def describe(self, infos: Sequence[LayerInfo]) -> str:
        """Say why these layers are the default."""
        alone = ", ".join(f"{describe_share(self._trial.measure(info) or 0)} past {info.name}" for info in infos)
        share = self._trial.measure_together(infos) or 0
        past = "nothing past all of them" if share <= MAX_BYPASS else f"{share:.0%} past all of them"
        return (
            f"the network has {len(infos)} members or branches, each explained at its own layer, and their maps are added up: "
            f"{alone}, and {past}"
        )
