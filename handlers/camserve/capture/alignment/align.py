"""Aligns layers with the picture: corrects how they were read, or refuses them, where probes show that they lie otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from camserve.capture.alignment.places import NEAR, Evidence, list_readings
from camserve.capture.alignment.probes import find_changes, find_peaks, make_probes
from camserve.capture.alignment.views import View, count_seen, find_view, is_local
from camserve.capture.base import Classifier
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import LayerInfo, Survey
from camserve.capture.survey.layout import UPRIGHT, Layout
from camserve.core.errors import ConfigError

TOKENS = ("tokens", "sequence")

COUNTS = (6, 16)
"""Number of probes, and of those that are taken where the first settle nothing."""

EARLIER = 8
"""How many earlier layers with as many tokens are looked at, where a layer's own peaks settle nothing."""

FINER = 4
"""An early layer that tells what a map sees has so many times its cells, at least."""

OUT_OF_PLACE = 0.6
"""How far, in cells, the cells of a layer that sees a part of the picture only may lie from where a map would show them."""

HIDDEN = 0.4
"""Share of the probes that an early map may miss: the layer sees a part of the picture only where it misses more."""

MIDDLES = 32
"""Probes lie in the middle of a layer's cells, or, of one with fewer cells, in those of halved ones."""

DIFFUSE = "every part of the picture changes all of its cells, so no trial shows where they lie; they are taken as they come"
UNSEEN = "no patch of the picture changes it by itself, so no trial shows where its cells lie; they are taken as they come"
SHUFFLED = (
    "its cells lie in another order than any that is known (in windows, or shuffled); take a layer before or behind, whose order "
    "is the picture's"
)
CROPPED = (
    "a map over all of the picture would be out of place; take the cropping out of the model's forward, and give --resize and "
    "--crop instead"
)
TRIED = "as a trial with a changed patch shows"


@dataclass(frozen=True)
class Aligned:
    """Where a layer's cells lie.

    Attributes:
        layout: as they lie.
        distance: median distance between a probe and the cell that it changes most, in cells; None where it is not known.
        note: what was found, in words; "" where there is nothing to say.
    """

    layout: Layout
    distance: float | None
    note: str = ""

    def describe(self) -> dict[str, object]:
        """Describe it in values that JSON can hold."""
        distance = None if self.distance is None else round(self.distance, 2)
        tokens = {"tokens_before": self.layout.extra, "tokens_behind": self.layout.behind} if self.layout.order in TOKENS else {}
        return {"grid": list(self.layout.grid), **tokens, "distance": distance, "note": self.note}


def align_layers(
    model: Classifier, survey: Survey, layers: Sequence[str], picture: Tensor, *, given: bool = False
) -> dict[str, Aligned]:
    """Find by trial where the cells of these layers lie in the picture, at each layer's last call.

    Args:
        picture: one of the survey's, `[1, C, H, W]`.
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
                probes = make_probes(picture, _halve(grid), count)
                changes = find_changes(model, {each.name: each.site.layout for each in others}, probes)
            for info in left:
                trial = _Trial(info, tokens[info.name], first[info.name], changes, probes.places)
                decided = trial.decide(given=given, last=count == COUNTS[-1])
                if decided:
                    found[info.name] = decided
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
    """Return the first map, of many more cells, that runs as often as this layer, of the smallest part that holds both."""
    cells = FINER * info.cells
    finer = [each for each in _before(survey, info) if each.site.layout.order not in TOKENS and each.cells >= cells]
    path = info.name.split(".")[:-1]
    for depth in range(len(path), -1, -1):
        prefix = "".join(f"{part}." for part in path[:depth])
        inside = next((each for each in finer if each.name.startswith(prefix)), None)
        if inside:
            return inside
    return None


def _before(survey: Survey, info: LayerInfo) -> list[LayerInfo]:
    names = [each.name for each in survey.maps]
    return [each for each in survey.maps[: names.index(info.name)] if each.calls == info.calls]


class _Trial:
    """What probes show of a layer, and of some before it.

    Args:
        info: the layer.
        alike: layers before it with as many tokens, the nearest first.
        first: an early map.
        changes: of all of these.
        places: of the probes.
    """

    def __init__(
        self,
        info: LayerInfo,
        alike: Sequence[LayerInfo],
        first: LayerInfo | None,
        changes: Mapping[str, Sequence[Tensor | None]],
        places: Sequence[tuple[float, float]],
    ) -> None:
        self._info = info
        self._layout = info.site.layout
        self._alike = alike
        self._first = first
        self._changes = changes
        self._places = places

    def decide(self, *, given: bool, last: bool) -> Aligned | None:
        """Decide where the layer's cells lie; None: more probes may tell.

        Raises:
            ConfigError: they lie elsewhere than any layout has them, or nothing tells it.
        """
        evidence = self._evidence(self._info)
        if given and self._layout.order in TOKENS:
            return Aligned(self._layout, evidence.median(self._layout) if evidence else None)
        return self._decide_tokens(evidence, last) if self._layout.order in TOKENS else self._decide_map(evidence, last)

    def _evidence(self, info: LayerInfo) -> Evidence | None:
        """Return what the probes show of a layer; None where they change nothing."""
        calls = self._changes[info.name]
        changes = calls[-1] if calls else None
        if changes is None:
            return None
        evidence = Evidence.of(info.site.layout, self._places, changes, find_peaks(changes.flatten(1)))
        return evidence if evidence.seen else None

    def _decide_tokens(self, evidence: Evidence | None, last: bool) -> Aligned | None:
        known = [each for each in (evidence, *map(self._evidence, self._alike)) if each]
        for each in known:
            settled = each.settle(list(list_readings(each.layout)))
            if settled:
                found = replace(settled, channels=self._layout.channels)
                own = evidence.median(found) if evidence is each else None
                return Aligned(found, own, _describe(self._layout, found))
            if each.sharp and last:
                raise self._error(SHUFFLED)
        if not last:
            return None
        if self._layout.others:
            raise ConfigError(f"layer {self._info.name} cannot be read: {_ask(self._layout)}")
        return Aligned(self._layout, evidence.median(self._layout) if evidence else None, DIFFUSE if evidence else UNSEEN)

    def _decide_map(self, evidence: Evidence | None, last: bool) -> Aligned | None:
        early = self._early_changes()
        view = find_view(early, self._places) if early is not None else None
        if early is not None:
            hidden = len(early) - count_seen(early)
            if hidden > len(early) * HIDDEN:
                if not last:
                    return None
                raise self._error(f"{hidden} of {len(early)} patches of the picture, changed, change nothing of it: {CROPPED}")
        settled = evidence.settle(list(list_readings(evidence.layout))) if evidence else None
        layout = replace(self._layout, turn=settled.turn if settled else view.turn if view else UPRIGHT)
        if view and view.offset(layout.grid) > OUT_OF_PLACE:
            raise self._error(_describe_view(view))
        distance = evidence.median(replace(evidence.layout, turn=layout.turn)) if evidence else None
        near = distance is not None and distance <= min(NEAR, max(layout.grid) / 4)
        if settled or view or near:
            return Aligned(layout, distance if near else None, _describe(self._layout, layout))
        if not last:
            return None
        if (evidence and evidence.sharp) or (early is not None and is_local(early)):
            raise self._error(SHUFFLED)
        return Aligned(layout, distance, DIFFUSE if evidence else UNSEEN)

    def _early_changes(self) -> Tensor | None:
        """Return the changes of an early map; None where there are none."""
        calls = self._changes[self._first.name] if self._first else ()
        changes = calls[-1] if calls else None
        return changes if changes is not None and bool(changes.any()) else None

    def _error(self, why: str) -> ConfigError:
        return ConfigError(f"layer {self._info.name} cannot be explained: {why}")


def _ask(layout: Layout) -> str:
    return (
        f"its output has {layout.height * layout.width + layout.others} tokens, of which {layout.height}x{layout.width} could be "
        "cells of a map, and no trial tells which; --token-grid ROWS COLUMNS BEFORE says it"
    )


def _describe_view(view: View) -> str:
    spans = [
        f"{max(0, low):.0%} to {min(1, high):.0%} of its {word}"
        for (low, high), word in ((view.rows, "height"), (view.columns, "width"))
    ]
    return f"its cells cover {' and '.join(spans)}: {CROPPED}"


def _describe(read: Layout, found: Layout) -> str:
    """Say where cells lie, where that is not as a picture's rows behind the other tokens."""
    parts = []
    if found.behind:
        cells = found.height * found.width
        parts.append(f"its cells are tokens {found.extra} to {found.extra + cells - 1} of {cells + found.others}")
    if found.turn != read.turn:
        parts.append(f"its grid is {found.turn}, and is turned back")
    return f"{', '.join(parts)}, {TRIED}" if parts else ""
