"""Decides where the cells of one call of a layer lie in the picture, from what probes change of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from camserve.capture.alignment.places import NEAR, Evidence, list_readings
from camserve.capture.alignment.probes import find_peaks
from camserve.capture.alignment.sight import WHOLE, Sight, count_seen, find_sight, is_local, is_moving
from camserve.capture.survey.layers import LayerInfo
from camserve.capture.survey.layout import TOKENS, UPRIGHT, Layout
from camserve.core.errors import ConfigError

OUT_OF_PLACE = 0.6
"""How far, in cells, the cells of a layer that sees a part of the picture only may lie from where a map would show them."""

ALL = 0.2
"""One of several views that leaves out less, in cells, sees all of the picture: convolutions without a border leave some out."""

HIDDEN = 0.4
"""Share of the probes that an early map may miss: the layer sees a part of the picture only where it misses more."""

MIDDLES = 32
"""Probes lie in the middle of a layer's cells, or, of one with fewer cells, in those of halved ones."""

FINER = 4
"""An early map that tells what part of the picture a layer sees has so many times its cells, at least."""

DIFFUSE = "every part of the picture changes all of its cells, so no trial shows where they lie; they are taken as they come"
UNSEEN = "no patch of the picture changes it by itself, so no trial shows where its cells lie; they are taken as they come"
SHUFFLED = (
    "its cells lie in another order than any that is known (in windows, or shuffled), or elsewhere in each picture (where the "
    "model warps it); take a layer before or behind, whose order is the picture's"
)
HIDES = (
    "{} of {} patches of the picture, changed, change nothing of it, and nothing tells which part it sees: a map over all of the "
    "picture would be out of place; take the cropping out of the model's forward, and give --resize and --crop instead"
)
UNTOLD = (
    "it runs {} times, each time on another view of the picture, and no trial tells what call {} sees; take the views out of the "
    "model's forward"
)
TRIED = "as a trial with a changed patch shows"


class Seen(NamedTuple):
    """What probes change: of each call of some layers, as `find_changes` gives it; and the places of the probes."""

    changes: Mapping[str, Sequence[Tensor | None]]
    places: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Placed:
    """Where the cells of a call lie.

    Attributes:
        layout: as they lie.
        distance: median distance between a probe and the cell that it changes most, in cells; None where it is not known.
        note: what was found, in words; "" where there is nothing to say.
        rows, columns: what part of the picture they cover, in shares of the height and the width.
    """

    layout: Layout
    distance: float | None
    note: str = ""
    rows: tuple[float, float] = WHOLE
    columns: tuple[float, float] = WHOLE


class Trial:
    """What probes show of one call of a layer, and of some layers before it.

    Args:
        info: the layer.
        call: the number of the call, from 1.
        alike: layers before it with as many tokens, the nearest first.
        first: an early map; one of many more cells tells what part of the picture the layer sees, any other whether it sees all.
        seen: what probes change of all of these.
    """

    def __init__(
        self,
        info: LayerInfo,
        call: int,
        alike: Sequence[LayerInfo],
        first: LayerInfo | None,
        seen: Seen,
    ) -> None:
        self._info = info
        self._call = call
        self._layout = info.layouts[call - 1] or info.site.layout if info.layouts else info.site.layout
        self._alike = alike
        self._first = first
        self._changes, self._places = seen

    def decide(self, *, given: bool, last: bool, most: bool) -> Placed | None:
        """Decide where the call's cells lie; None: more probes may tell.

        Args:
            given: whether the configuration says how tokens lie.
            last: whether there are no more probes, unless for a layer that sees a part of the picture only.
            most: whether there are none for that either.

        Raises:
            ConfigError: they lie elsewhere than any layout has them, or nothing tells it.
        """
        evidence = self._evidence(self._info)
        if given and self._layout.order in TOKENS:
            return Placed(self._layout, evidence.median(self._layout) if evidence else None)
        sight, hidden = self._find_sight(), self._count_hidden() > len(self._places) * HIDDEN
        if hidden and not sight:
            if most:
                raise self._error(HIDES.format(self._count_hidden(), len(self._places)))
            return None
        parted = sight if sight and (hidden or sight.offset(self._layout.grid) > self._tolerance) else None
        if parted and not most:
            return None
        if self._layout.order in TOKENS:
            return self._decide_tokens(evidence, parted, last)
        return self._decide_map(evidence, sight, parted, last)

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
                return Placed(found, own, _describe(self._layout, found))
            if each.sharp and last:
                raise self._error(SHUFFLED)
        if not last:
            return None
        if self._layout.others:
            raise ConfigError(f"layer {self._info.name} cannot be read: {_ask(self._layout)}")
        if parted:
            return self._place(replace(self._layout, turn=parted.turn), parted)
        return Placed(self._layout, evidence.median(self._layout) if evidence else None, DIFFUSE if evidence else UNSEEN)

    def _decide_map(self, evidence: Evidence | None, sight: Sight | None, parted: Sight | None, last: bool) -> Placed | None:
        settled = evidence.settle(list(list_readings(evidence.layout))) if evidence else None
        layout = replace(self._layout, turn=settled.turn if settled else sight.turn if sight else UPRIGHT)
        distance = evidence.median(replace(evidence.layout, turn=layout.turn)) if evidence else None
        near = distance is not None and distance <= min(NEAR, max(layout.grid) / 4)
        if parted:
            return self._place(layout, parted)
        early = self._of(self._first) if self._first and self._first.cells >= FINER * self._info.cells else None
        evident = early is not None and (is_local(early) or is_moving(early))
        if sight or (not evident and (settled or (near and not self._info.views))):
            return Placed(layout, distance if near else None, _describe(self._layout, layout))
        if not last:
            return None
        if self._info.views:
            raise self._error(UNTOLD.format(len(self._info.views), self._call))
        if (evidence and evidence.sharp) or early is not None:  # where not even an early map's changes lie on lines
            raise self._error(SHUFFLED)
        return Placed(layout, distance, DIFFUSE if evidence else UNSEEN)

    @property
    def _tolerance(self) -> float:
        """How far, in cells, cells may lie from where they would if all were seen, before they are put elsewhere."""
        return ALL if self._info.views else OUT_OF_PLACE

    def _place(self, layout: Layout, sight: Sight) -> Placed:
        """Put the cells where they lie in the part of the picture that is seen."""
        words = [f"over {_describe_part(sight)}", _describe(self._layout, layout)]
        return Placed(layout, None, ", ".join(filter(None, words)), sight.rows, sight.columns)

    def _of(self, info: LayerInfo) -> Tensor | None:
        """Return the changes of this call of a layer; None where there are none."""
        calls = self._changes[info.name]
        changes = calls[self._call - 1] if self._call <= len(calls) else None
        return changes if changes is not None and bool(changes.any()) else None

    def _count_hidden(self) -> int:
        """Count the probes that change nothing of an early map."""
        early = self._of(self._first) if self._first else None
        return 0 if early is None else len(early) - count_seen(early)

    def _error(self, why: str) -> ConfigError:
        return ConfigError(f"layer {self._info.name} cannot be explained: {why}")


def _ask(layout: Layout) -> str:
    return (
        f"its output has {layout.height * layout.width + layout.others} tokens, of which {layout.height}x{layout.width} could be "
        "cells of a map, and no trial tells which; --token-grid ROWS COLUMNS BEFORE says it"
    )


def _describe_part(sight: Sight) -> str:
    spans = [
        f"{max(0, low):.0%} to {min(1, high):.0%} of its {word}"
        for (low, high), word in ((sight.rows, "height"), (sight.columns, "width"))
    ]
    return " and ".join(spans)


def _describe(read: Layout, found: Layout) -> str:
    """Say where cells lie, where that is not as a picture's rows behind the other tokens."""
    parts = []
    if found.behind:
        cells = found.height * found.width
        parts.append(f"its cells are tokens {found.extra} to {found.extra + cells - 1} of {cells + found.others}")
    if found.turn != read.turn:
        parts.append(f"its grid is {found.turn}, and is turned back")
    return f"{', '.join(parts)}, {TRIED}" if parts else ""
