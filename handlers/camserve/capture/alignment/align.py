"""Aligns layers with the picture: corrects how they were read, or refuses them, where probes show that they lie otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from camserve.capture.alignment.places import Place, look_twice
from camserve.capture.alignment.probes import Probes, find_changes, make_probes
from camserve.capture.alignment.sight import WHOLE, Sight, find_part, find_unseen, is_local, is_off
from camserve.capture.alignment.slopes import find_slopes
from camserve.capture.alignment.steps import Trace
from camserve.capture.alignment.trial import FINER, MIDDLES, Placed, Seen, Trial
from camserve.capture.alignment.words import DIFFUSE, PARTLY, SHUFFLED, TWOFOLD, UNSEEN, WAVERING, describe_part, without_doubt
from camserve.capture.base import Classifier
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import LayerInfo, Site, Survey, View
from camserve.capture.survey.layout import TOKENS, Layout
from camserve.core.errors import ConfigError

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
        told: whether a trial, or the configuration, tells where they lie; else they are taken as they come.
    """

    site: Site
    distance: float | None
    note: str = ""
    told: bool = True

    @classmethod
    def of(cls, info: LayerInfo, placed: Sequence[Placed]) -> Aligned:
        """Take together what was found of each of a layer's calls that count."""
        last = placed[-1]
        if not info.views and last.rows == last.columns == WHOLE:
            return cls(Site(info.name, info.calls, last.layout), last.distance, last.note, last.told)
        if not info.views:
            view = View(info.calls, last.layout, last.rows, last.columns)
            note = f"its cells lie {last.note}; {PARTLY}"
            return cls(Site(info.name, info.calls, last.layout, (view,)), last.distance, note, last.told)
        views = tuple(View(call, each.layout, each.rows, each.columns) for call, each in zip(info.views, placed, strict=True))
        distances = [each.distance for each in placed if each.distance is not None]
        words = (f"call {call}: {each.note or 'as the picture lies'}" for call, each in zip(info.views, placed, strict=True))
        note = f"its {len(views)} calls see the picture each for itself and are added up, each at its place ({'; '.join(words)})"
        told = all(each.told for each in placed)
        return cls(Site(info.name, info.calls, last.layout, views), max(distances, default=None), note, told)

    @classmethod
    def join(cls, name: str, members: Sequence[Aligned]) -> Aligned:
        """Take several layers together, which are explained as one; a single one as it is."""
        if len(members) == 1:
            return members[0]
        finest = max((each.site.layout for each in members), key=lambda layout: layout.height * layout.width)
        layout = Layout("nchw", *finest.grid, sum(each.site.layout.channels for each in members))
        distances = [each.distance for each in members if each.distance is not None]
        notes = "; ".join(f"of {each.site.layer}, {each.note}" for each in members if each.note)
        return cls(Site(name, 1, layout), max(distances, default=None), notes, all(each.told for each in members))

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
        if not self.told:
            told["told"] = False
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
    infos = [survey.info(layer) for layer in layers]
    traces = {info.name: [Trace(model, survey, info, call, pictures) for call in _calls(info)] for info in infos}
    found: dict[str, Aligned] = {}
    for grid in dict.fromkeys(info.site.layout.grid for info in infos):
        for count in COUNTS:
            left = [info for info in infos if info.name not in found and info.site.layout.grid == grid]
            if not left:
                break
            tokens = {info.name: _list_alike(survey, info) for info in left}
            first = {info.name: _list_first(survey, info) for info in left}
            others = [*left, *(each for several in (*tokens.values(), *first.values()) for each in several)]
            with disable_tf32():
                probes = make_probes(pictures, _halve(grid), count)
                shown = find_changes(model, {each.name: each.site.layout for each in others}, probes)
            for info in left:
                known = tokens[info.name], _pick_first(first[info.name], shown.changes), Seen(*shown, probes.places)
                calls = list(zip(_calls(info), traces[info.name], strict=True))
                trials = [Trial(info, call, *known, trace=trace) for call, trace in calls]
                placed = [trial.decide(given=given, last=count >= COUNTS[1], most=count == COUNTS[-1]) for trial in trials]
                whole = [each for each in placed if each]
                if len(whole) == len(placed):
                    pairs = zip(calls, whole, strict=True)
                    confirmed = [_confirm(model, info, *call, each, pictures=pictures) for call, each in pairs]
                    if not info.views:
                        changes = shown.changes[info.name]
                        confirmed = [_look_inside(model, info, calls[0][1], confirmed[0], calls=changes, probes=probes)]
                    grids = [trial.lay_out(each.layout) for trial, each in zip(trials, confirmed, strict=True)]
                    doubted = [_doubt_twofold(*each, probes.places) for each in zip(confirmed, grids, strict=True)]
                    found[info.name] = Aligned.of(info, doubted)
    return found


def _calls(info: LayerInfo) -> tuple[int, ...]:
    """Return the numbers of a layer's calls that count."""
    return info.views or (info.calls,)


def _confirm(model: Classifier, info: LayerInfo, call: int, trace: Trace, placed: Placed, *, pictures: Tensor) -> Placed:
    """Ask the slopes of a call's cells where probes do not show clearly where these lie, and the steps where these do not tell.

    Args:
        placed: where probes, steps, or an early map place them.
        pictures: `[N, C, H, W]`.

    Raises:
        ConfigError: they lie elsewhere.
    """
    if placed.clear or placed.by_steps:
        return placed
    slopes = find_slopes(model, info.name, View(call, placed.layout, placed.rows, placed.columns), pictures)
    verdict = slopes.verdict if slopes else "unknown"
    if verdict == "elsewhere":
        raise ConfigError(f"layer {info.name} cannot be explained: {SHUFFLED}")
    if slopes and verdict == "there":
        distance = slopes.distance if placed.distance is None else placed.distance
        return replace(placed, note=without_doubt(placed.note), told=True, distance=distance)
    tokens = placed.layout.order in TOKENS
    if placed.told and (tokens or trace.plain) and (placed.distance is not None or not slopes):  # and nothing speaks against it
        return placed
    if _is_whole(placed) and not tokens and trace.plain and trace.steady:
        return replace(placed, note=without_doubt(placed.note), told=True)
    note = placed.note if placed.note in (DIFFUSE, UNSEEN) else "; ".join(filter(None, (placed.note, DIFFUSE)))
    return replace(placed, note=note, told=False)


def _doubt(placed: Placed) -> Placed:
    """Doubt a map over all of the picture whose steps lead elsewhere, but not to one place in all pictures."""
    return replace(placed, told=False, note="; ".join(filter(None, (without_doubt(placed.note), WAVERING))))


def _doubt_twofold(placed: Placed, grids: Tensor | None, places: Sequence[Place]) -> Placed:
    """Doubt a map whose cells look at two places; `grids`: what probes at `places` change of it, `[K, h, w]`."""
    if grids is None or not placed.told or not look_twice(grids, Sight(placed.rows, placed.columns).inside(places)):
        return placed
    return replace(placed, told=False, note=TWOFOLD)


def _look_inside(
    model: Classifier, info: LayerInfo, trace: Trace, placed: Placed, *, calls: Sequence[Tensor | None], probes: Probes
) -> Placed:
    """Lay a map, taken to lie over all of the picture, over the part that probes show which change the inside of it alone.

    Args:
        trace: where the steps lead. Where they lead to all of the picture, it lies there.
        placed: where it is taken to lie.
        calls: what `probes` change of each of its calls, `[K, h, w]` as it lies in memory.
    """
    layout = placed.layout
    if trace.plain or placed.by_steps or not _is_whole(placed) or layout.order in TOKENS:
        return placed
    if trace.at:
        return _doubt(placed)
    changes = calls[info.calls - 1] if info.calls <= len(calls) else None
    if not placed.told or changes is None or not is_off(layout.turn.apply(changes[:, None])[:, 0], probes.places):
        return placed
    with disable_tf32():
        more = make_probes(probes.pictures[: probes.plain], _halve(layout.grid), COUNTS[-1])
        changes = find_changes(model, {info.name: layout}, more).changes[info.name][info.calls - 1]
    part = None if changes is None else find_part(layout.turn.apply(changes[:, None])[:, 0], more.places)
    if part is None:
        return placed
    note = "; ".join(filter(None, (f"over {describe_part(part)}", placed.note)))
    return replace(placed, rows=part.rows, columns=part.columns, distance=None, note=note)


def _is_whole(placed: Placed) -> bool:
    return placed.rows == placed.columns == WHOLE


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


def _list_first(survey: Survey, info: LayerInfo) -> list[LayerInfo]:
    """List early maps that may tell what part of the picture a layer sees, that run as often, the best first.

    It is the first map, of many more cells, of the smallest part that holds both; that part may be the layer itself. Where no
    map of a part of the model has so many, one of a few more may be as near. Where none has many more in all of the model, it is
    the first of all: that tells whether a probe is seen.
    """
    maps = [each for each in _before(survey, info) if each.site.layout.order not in TOKENS]
    finer = [each for each in maps if each.cells >= MUCH_FINER * info.cells]
    few = [each for each in maps if each.cells >= FINER * info.cells]
    path = info.name.split(".")
    prefixes = ["".join(f"{part}." for part in path[:depth]) for depth in range(len(path), 0, -1)]
    for prefix in prefixes:
        inside = next((each for each in finer if each.name.startswith(prefix)), None)
        if inside:
            return [inside]
    near = next((each for prefix in prefixes for each in few if each.name.startswith(prefix)), None)
    return [each for each in (near, next(iter(finer or few or maps), None)) if each]


def _pick_first(several: Sequence[LayerInfo], changes: Mapping[str, Sequence[Tensor | None]]) -> LayerInfo | None:
    """Return the first of several maps that probes change in one place each, or that misses some of them; else the last."""
    for each in several[:-1]:
        calls = [call for call in changes[each.name] if call is not None and bool(call.any())]
        if calls and all(is_local(call) or any(find_unseen(call)) for call in calls):
            return each
    return several[-1] if several else None


def _before(survey: Survey, info: LayerInfo) -> list[LayerInfo]:
    names = [each.name for each in survey.maps]
    return [each for each in survey.maps[: names.index(info.name)] if each.calls == info.calls]
