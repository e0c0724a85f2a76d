"""Decides where the cells of one call of a layer lie in the picture, from what probes change of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from camserve.capture.alignment.places import NEAR, Evidence, list_readings
from camserve.capture.alignment.probes import find_peaks
from camserve.capture.alignment.sight import (
    WHOLE,
    Sight,
    count_lost,
    find_sight,
    find_unseen,
    is_elsewhere,
    is_local,
    is_moving,
)
from camserve.capture.alignment.steps import OUT_OF_PLACE, Trace
from camserve.capture.alignment.words import (
    DIFFUSE,
    HIDES,
    SHUFFLED,
    UNSEEN,
    UNTOLD,
    ask_for_grid,
    describe_order,
    describe_part,
)
from camserve.capture.survey.layers import LayerInfo
from camserve.capture.survey.layout import TOKENS, UPRIGHT, Layout
from camserve.core.errors import ConfigError

ALL = 0.2
"""One of several views that leaves out less, in cells, sees all of the picture: convolutions without a border leave some out."""

HIDDEN = 0.4
"""Share of the probes that an early map may miss: the layer sees a part of the picture only where it misses more."""

NARROW = 2
"""Least height and width of what is seen, in probes: of narrower parts most probes lie across an edge."""

LOST = 0.25
"""Share of the probes that an early map may see and the layer may not, beside its silent cells: one that misses more sees a
part of the picture."""

MIDDLES = 32
"""Probes lie in the middle of a layer's cells, or, of one with fewer cells, in those of halved ones."""

FINER = 4
"""An early map that tells what part of the picture a layer sees has so many times its cells, at least."""


class Seen(NamedTuple):
    """What probes show of each call of some layers, as `find_changes` gives it; and the places of the probes."""

    changes: Mapping[str, Sequence[Tensor | None]]
    silent: Mapping[str, Sequence[float]]
    places: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Placed:
    """Where the cells of a call lie.

    Attributes:
        layout: as they lie.
        distance: median distance between a probe and the cell that it changes most, in cells; None where it is not known.
        note: what was found, in words; "" where there is nothing to say.
        rows, columns: what part of the picture they cover, in shares of the height and the width.
        told: whether a trial, or the configuration, tells it.
        clear: whether nearly every probe changes most what lies about where it is, or the configuration tells it.
        by_steps: whether the steps from map to map lay them so, in all pictures.
    """

    layout: Layout
    distance: float | None
    note: str = ""
    rows: tuple[float, float] = WHOLE
    columns: tuple[float, float] = WHOLE
    told: bool = True
    clear: bool = False
    by_steps: bool = False


class Trial:
    """What probes show of one call of a layer, and of some layers before it.

    Args:
        info: the layer.
        call: the number of the call, from 1.
        alike: layers before it with as many tokens, the nearest first.
        first: an early map; one of many more cells tells what part of the picture the layer sees, any other whether it sees all.
        seen: what probes change of all of these.
        trace: where the steps from map to map lay its cells.
    """

    def __init__(
        self,
        info: LayerInfo,
        call: int,
        alike: Sequence[LayerInfo],
        first: LayerInfo | None,
        seen: Seen,
        *,
        trace: Trace,
    ) -> None:
        self._info = info
        self._call = call
        self._layout = info.layouts[call - 1] or info.site.layout if info.layouts else info.site.layout
        self._alike = alike
        self._first = first
        self._changes, self._silent, self._places = seen
        self._trace = trace

    def decide(self, *, given: bool, last: bool, most: bool) -> Placed | None:
        """Decide where the call's cells lie, unless its own changes lie elsewhere; None: more probes may tell.

        Args:
            given: whether the configuration says how tokens lie.
            last: whether there are no more probes, unless for a layer that sees a part of the picture only.
            most: whether there are none for that either.

        Raises:
            ConfigError: they lie elsewhere than any layout has them, or nothing tells it.
        """
        evidence = self._evidence(self._info)
        if given and self._layout.order in TOKENS:
            return Placed(self._layout, evidence.median(self._layout) if evidence else None, clear=True)
        placed = self._decide(evidence, last=last, most=most)
        if placed is None:
            return None
        grids = self.lay_out(placed.layout)
        if grids is None or not is_elsewhere(grids, Sight(placed.rows, placed.columns).inside(self._places)):
            return self._mark_clear(placed, evidence, local=grids is not None and is_local(grids))
        if last:
            raise self._error(SHUFFLED)
        return None

    def _decide(self, evidence: Evidence | None, *, last: bool, most: bool) -> Placed | None:
        tokens = self._layout.order in TOKENS
        if self._trace.at and self._trace.leads:
            return self._decide_tokens(evidence, self._trace.at.part, last) if tokens else self._follow(SHUFFLED)
        early, own = self._count_missed()
        sight, hidden = self._find_sight(), early > len(self._places) * HIDDEN
        sight = None if sight and self._is_narrow(sight) else sight
        if sight and sight.turn.transposed:
            self._trace.transpose()
        lost = own - early > len(self._places) * (LOST + self._silent[self._info.name][self._call - 1])
        if (hidden and not sight) or lost:  # what sees more tells nothing of what this one sees
            return self._follow(HIDES.format(max(early, own), len(self._places))) if most else None
        parted = sight if sight and (hidden or sight.offset(self._layout.grid) > self._tolerance) else None
        if parted and self._trace.steady:
            return self._decide_tokens(evidence, None, last) if tokens else self._follow(SHUFFLED)
        if parted and not most:
            return None
        if tokens:
            return self._decide_tokens(evidence, parted, last)
        return self._decide_map(evidence, sight, parted, last)

    def _follow(self, otherwise: str) -> Placed:
        """Return the map laid where the steps lead; `otherwise`: why it is refused where they lead to no place, or to several."""
        traced = self._trace.at
        if not traced or not self._trace.steady or self._layout.order in TOKENS:
            raise self._error(otherwise)
        layout = replace(self._layout, turn=traced.sight.turn)
        if traced.part:
            return replace(self._place(layout, traced.part), by_steps=True)
        return Placed(layout, None, describe_order(self._layout, layout), by_steps=True)

    def _count_missed(self) -> tuple[int, int]:
        """Return how many probes the early map misses, and how many the layer."""
        first, mine = (self._of(info) if info else None for info in (self._first, self._info))
        early = 0 if first is None else sum(find_unseen(_as_maps(first)))
        return early, 0 if mine is None else count_lost(_as_maps(mine), self._places)

    def _mark_clear(self, placed: Placed, evidence: Evidence | None, *, local: bool) -> Placed:
        """Return what was decided, and whether it is clear; `local`: the changes lie close together, and not elsewhere."""
        if not evidence or not placed.told:
            return placed
        if placed.rows != WHOLE or placed.columns != WHOLE:
            return replace(placed, clear=local)
        layout = placed.layout if placed.layout.order in TOKENS else replace(evidence.layout, turn=placed.layout.turn)
        if not local and not evidence.is_clear(layout):
            return placed
        return replace(placed, clear=True, distance=evidence.median(layout) if placed.distance is None else placed.distance)

    def lay_out(self, layout: Layout) -> Tensor | None:
        """Return the call's own changes `[K, h, w]` as they lie in the picture; None: there are none, or of another size."""
        changes = self._of(self._info)
        if changes is not None and changes.ndim == 2:
            changes = changes[:, layout.extra : changes.shape[1] - layout.behind]
        size = (layout.height, layout.width)
        if changes is None or (changes.shape[1:] != size if changes.ndim == 3 else changes.shape[1] != size[0] * size[1]):
            return None
        return layout.turn.apply(changes.reshape(len(changes), 1, layout.height, layout.width))[:, 0]

    def _evidence(self, info: LayerInfo) -> Evidence | None:
        """Return what the probes show of a layer; None where they change nothing."""
        changes = self._of(info)
        if changes is None:
            return None
        evidence = Evidence.of(info.site.layout, self._places, changes, find_peaks(changes.flatten(1)))
        return evidence if evidence.seen else None

    def _find_sight(self) -> Sight | None:
        """Return what the layer sees of the picture, as an early map tells, or the first layer with as many tokens; else None."""
        early = self._of(self._first) if self._first else None
        if early is not None and self._first and self._first.cells >= FINER * self._info.cells:
            return find_sight(early, self._places)
        layout = self._layout
        if early is None and self._alike:
            layout = self._alike[-1].site.layout
            tokens = self._of(self._alike[-1])
            early = None if tokens is None else tokens[:, layout.extra : tokens.shape[1] - layout.behind]
        if early is None or early[0].numel() != layout.height * layout.width or early[0].numel() < MIDDLES:
            return None
        early = early.reshape(len(early), layout.height, layout.width)
        return find_sight(early, self._places, middles=True) if is_local(early) else None

    def _is_narrow(self, sight: Sight) -> bool:
        """Return whether so little is seen that probes, which are as large as a cell, cannot tell from where to where."""
        counts = (len(set(shares)) for shares in zip(*self._places, strict=True))
        return any((high - low) * count < NARROW for (low, high), count in zip((sight.rows, sight.columns), counts, strict=True))

    def _decide_tokens(self, evidence: Evidence | None, parted: Sight | None, last: bool) -> Placed | None:
        known = [each for each in (evidence, *map(self._evidence, self._alike)) if each]
        for each in known:
            seen = replace(each, places=parted.inside(each.places)) if parted else each
            settled = seen.settle(list(list_readings(each.layout)))
            if settled:
                found = replace(settled, channels=self._layout.channels)
                if parted:
                    return self._place(found, parted)
                own = evidence.median(found) if evidence is each else None
                return Placed(found, own, describe_order(self._layout, found))
            if each.sharp and last:
                raise self._error(SHUFFLED)
        if not last:
            return None
        if self._layout.others:
            raise ConfigError(f"layer {self._info.name} cannot be read: {ask_for_grid(self._layout)}")
        if parted:
            return self._place(replace(self._layout, turn=parted.turn), parted)
        return Placed(
            self._layout, evidence.median(self._layout) if evidence else None, DIFFUSE if evidence else UNSEEN, told=False
        )

    def _decide_map(self, evidence: Evidence | None, sight: Sight | None, parted: Sight | None, last: bool) -> Placed | None:
        settled = evidence.settle(list(list_readings(evidence.layout))) if evidence else None
        layout = replace(self._layout, turn=settled.turn if settled else sight.turn if sight else UPRIGHT)
        distance = evidence.median(replace(evidence.layout, turn=layout.turn)) if evidence else None
        near = distance is not None and distance <= min(NEAR, max(layout.grid) / 4)
        if parted:
            return self._place(layout, parted)
        early = self._of(self._first) if self._first and self._first.cells >= FINER * self._info.cells else None
        evident = early is not None and (is_local(early) or is_moving(early))
        if layout.turn.transposed:
            self._trace.transpose()
        if layout.turn != UPRIGHT and self._trace.steady:
            return self._follow(SHUFFLED)
        if sight or (not evident and (settled or (near and not self._info.views))):
            return Placed(layout, distance if near else None, describe_order(self._layout, layout))
        if not last:
            return None
        if self._info.views:
            raise self._error(UNTOLD.format(len(self._info.views), self._call))
        if (evidence and evidence.sharp) or early is not None:  # where not even an early map's changes lie on lines
            return self._follow(SHUFFLED)
        return Placed(layout, distance, DIFFUSE if evidence else UNSEEN, told=False)

    @property
    def _tolerance(self) -> float:
        """How far, in cells, cells may lie from where they would if all were seen, before they are put elsewhere."""
        return ALL if self._info.views else OUT_OF_PLACE

    def _place(self, layout: Layout, sight: Sight) -> Placed:
        """Put the cells where they lie in the part of the picture that is seen."""
        words = [f"over {describe_part(sight)}", describe_order(self._layout, layout)]
        return Placed(layout, None, ", ".join(filter(None, words)), sight.rows, sight.columns)

    def _of(self, info: LayerInfo) -> Tensor | None:
        """Return the changes of this call of a layer; None where there are none."""
        calls = self._changes[info.name]
        changes = calls[self._call - 1] if self._call <= len(calls) else None
        return changes if changes is not None and bool(changes.any()) else None

    def _error(self, why: str) -> ConfigError:
        return ConfigError(f"layer {self._info.name} cannot be explained: {why}")


def _as_maps(changes: Tensor) -> Tensor:
    """Return changes `[K, h, w]` or `[K, T]` as `[K, h, w]`."""
    return changes if changes.ndim == 3 else changes[:, None]
