"""Aligns layers with the picture: corrects how they were read, or refuses them, where probes show that they lie otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from camserve.capture.alignment.probes import find_changes, make_probes
from camserve.capture.alignment.sight import WHOLE
from camserve.capture.alignment.trial import FINER, MIDDLES, Placed, Seen, Trial
from camserve.capture.base import Classifier
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import LayerInfo, Site, Survey, View
from camserve.capture.survey.layout import TOKENS, Layout

COUNTS = (6, 16, 48)
"""Number of probes, of those that are taken where the first settle nothing, and where a layer sees a part of the picture only."""

MUCH_FINER = 16
"""An early map of a layer's own part has so many times its cells, at least: with four times as many, as the first convolution of
a ResNet's last stage, what each probe changes reaches over most of the picture already."""

EARLIER = 8
"""How many earlier layers with as many tokens are looked at, where a layer's own peaks settle nothing."""


@dataclass(frozen=True)
class Aligned:
    """Where a layer's cells lie.

    Attributes:
        site: where a capture takes its map from.
        distance: median distance between a probe and the cell that it changes most, in cells; None where it is not known.
        note: what was found, in words; "" where there is nothing to say.
    """

    site: Site
    distance: float | None
    note: str = ""

    @classmethod
    def of(cls, info: LayerInfo, placed: Sequence[Placed]) -> Aligned:
        """Take together what was found of each of a layer's calls that count."""
        last = placed[-1]
        if not info.views and last.rows == last.columns == WHOLE:
            return cls(Site(info.name, info.calls, last.layout), last.distance, last.note)
        if not info.views:
            view = View(info.calls, last.layout, last.rows, last.columns)
            note = f"it sees a part of the picture, and its map lies {last.note}; --resize and --crop would spare it the rest"
            return cls(Site(info.name, info.calls, last.layout, (view,)), last.distance, note)
        views = tuple(View(call, each.layout, each.rows, each.columns) for call, each in zip(info.views, placed, strict=True))
        distances = [each.distance for each in placed if each.distance is not None]
        words = (f"call {call}: {each.note or 'as the picture lies'}" for call, each in zip(info.views, placed, strict=True))
        note = f"its {len(views)} calls see the picture each for itself and are added up, each at its place ({'; '.join(words)})"
        return cls(Site(info.name, info.calls, last.layout, views), max(distances, default=None), note)

    @classmethod
    def join(cls, name: str, members: Sequence[Aligned]) -> Aligned:
        """Take several layers together, which are explained as one; a single one as it is."""
        if len(members) == 1:
            return members[0]
        finest = max((each.site.layout for each in members), key=lambda layout: layout.height * layout.width)
        layout = Layout("nchw", *finest.grid, sum(each.site.layout.channels for each in members))
        distances = [each.distance for each in members if each.distance is not None]
        notes = "; ".join(f"of {each.site.layer}, {each.note}" for each in members if each.note)
        return cls(Site(name, 1, layout), max(distances, default=None), notes)

    def describe(self) -> dict[str, object]:
        """Describe it in values that JSON can hold."""
        layout = self.site.layout
        told: dict[str, object] = {
            "grid": list(layout.grid),
            "calls": [view.call for view in self.site.views] or [self.site.calls],
        }
        if layout.order in TOKENS:
            told |= {"tokens_before": layout.extra, "tokens_behind": layout.behind}
        if self.distance is not None:
            told["distance"] = round(self.distance, 2)
        return {**told, "note": self.note} if self.note else told


def align_layers(
    model: Classifier, survey: Survey, layers: Sequence[str], pictures: Tensor, *, given: bool = False
) -> dict[str, Aligned]:
    """Find by trial where the cells of these layers lie in the picture, at each of its calls that counts.

    Args:
        pictures: those of the survey, `[N, C, H, W]`.
        given: whether the configuration says how tokens lie: then they are taken so, whatever the trial shows.

    Raises:
        ConfigError: a layer's cells lie where no layout has them, or nothing tells which of its tokens are cells.
    """
    by_grid: dict[tuple[int, int], list[LayerInfo]] = {}
    for layer in layers:
        info = survey.info(layer)
        by_grid.setdefault(info.site.layout.grid, []).append(info)
    found: dict[str, Aligned] = {}
    for grid, infos in by_grid.items():
        for count in COUNTS:
            left = [info for info in infos if info.name not in found]
            if not left:
                break
            tokens = {info.name: _list_alike(survey, info) for info in left}
            first = {info.name: _find_first(survey, info) for info in left}
            others = [*left, *(each for alike in tokens.values() for each in alike), *(each for each in first.values() if each)]
            with disable_tf32():
                probes = make_probes(pictures, _halve(grid), count)
                changes = find_changes(model, {each.name: each.site.layout for each in others}, probes)
            for info in left:
                known = tokens[info.name], first[info.name], Seen(changes, probes.places)
                trials = [Trial(info, call, *known) for call in info.views or (info.calls,)]
                placed = [trial.decide(given=given, last=count >= COUNTS[1], most=count == COUNTS[-1]) for trial in trials]
                whole = [each for each in placed if each]
                if len(whole) == len(placed):
                    found[info.name] = Aligned.of(info, whole)
    return found


def _halve(grid: tuple[int, int]) -> tuple[int, int]:
    return grid if grid[0] * grid[1] >= MIDDLES else _halve((2 * grid[0], 2 * grid[1]))


def _list_alike(survey: Survey, info: LayerInfo) -> list[LayerInfo]:
    """List layers before this one with as many tokens and calls, the nearest first; the first of the model is among them."""
    layout = info.site.layout
    if layout.order not in TOKENS:
        return []
    alike = [each for each in _before(survey, info) if each.site.layout.shape(1)[:2] == layout.shape(1)[:2]]
    alike = [each for each in alike if each.site.layout.order == layout.order]
    return alike[:: max(1, -(-len(alike) // EARLIER))][::-1]


def _find_first(survey: Survey, info: LayerInfo) -> LayerInfo | None:
    """Return the first map, of many more cells, that runs as often as this layer, of the smallest part that holds both.

    That part may be the layer itself. Where no map has so many, it is the first of all: that tells whether a probe is seen.
    """
    maps = [each for each in _before(survey, info) if each.site.layout.order not in TOKENS]
    finer = [each for each in maps if each.cells >= MUCH_FINER * info.cells]
    path = info.name.split(".")
    for depth in range(len(path), -1, -1):
        prefix = "".join(f"{part}." for part in path[:depth])
        inside = next((each for each in finer if each.name.startswith(prefix)), None)
        if inside:
            return inside
    return next((each for each in maps if each.cells >= FINER * info.cells), next(iter(maps), None))


def _before(survey: Survey, info: LayerInfo) -> list[LayerInfo]:
    names = [each.name for each in survey.maps]
    return [each for each in survey.maps[: names.index(info.name)] if each.calls == info.calls]
