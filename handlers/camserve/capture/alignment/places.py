"""Reads from a layer's peaks where its cells lie in the picture: which tokens are cells, and how the grid is turned."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from camserve.capture.survey.layout import Layout, Turn

Place = tuple[float, float]
"""Shares of the height and the width, from the upper left."""

HIT = 0.6
"""A peak so near the probe, in cells along each axis, hits it."""

FEWEST = 3
"""Least number of hits that settle where cells lie."""

HITTING = (0.5, 0.75)
"""Least share of the probes that must hit; and where changes are sharp, so that there is no chance in them."""

LEAD = 3
"""How many times as many hits as any other reading the one must have that is settled."""

CHANCE = 1e-3
"""Largest probability that some reading has so many hits by chance: half of six are no evidence on 4 x 4 cells."""

MANY = 8
"""Least number of probes of which the mean distance counts."""

FAR = 3.0
"""Beyond so many cells it does not matter how far a peak lies."""

APART = 0.4
"""By how much less than any other reading's a mean distance must be, in cells, to settle where cells lie."""

NEAR = 1.0
"""Median distance, in cells, up to which a layer lies as it is read, where hits do not settle it."""

REACH = (1.5, 0.25, 0.6)
"""Along an axis, a peak up to so many cells away is about where the probe is; of few cells, this share of them, or so many."""

CLEAR = (0.8, 1e-2)
"""Where at least this share of the peaks is about where the probes are, by chance with no larger probability than this, it is
clear where cells lie."""

TWIN = (0.5, 4.0)
"""Where cells look at two places, a probe changes what lies at its mirror image at least this share of what it changes at its own
place, and so many times what it changes elsewhere; medians."""

SHARP = 0.5
"""Where one cell has so much of a probe's whole change, its place is evident, wherever it is."""


@dataclass(frozen=True)
class Evidence:
    """What the probes show of one call of a layer.

    Attributes:
        layout: as it was read.
        places: where the probes are.
        peaks: the cell, or token, of each probe; None: it changes hardly any.
        sharp: whether a probe changes little else than its peak.
    """

    layout: Layout
    places: Sequence[Place]
    peaks: Sequence[int | None]
    sharp: bool

    @classmethod
    def of(cls, layout: Layout, places: Sequence[Place], changes: Tensor, peaks: Sequence[int | None]) -> Evidence:
        """Take the evidence from changes `[K, h, w]` or `[K, T]`, where `layout` may be of another size."""
        if changes.ndim == 3:
            layout = replace(layout, height=changes.shape[1], width=changes.shape[2])
        flat = changes.flatten(1)
        seen = [(row[peak] / row.sum()).item() for row, peak in zip(flat, peaks, strict=True) if peak is not None]
        return cls(layout, places, peaks, bool(seen) and statistics.median(seen) >= SHARP)

    @property
    def seen(self) -> int:
        """Number of probes that change a cell."""
        return sum(peak is not None for peak in self.peaks)

    def distances(self, layout: Layout) -> list[tuple[float, float]]:
        """Return how far, in rows and columns, each peak lies from its probe, if the layer lay as `layout` says."""
        rows, columns = layout.grid
        found = []
        for peak, (row, column) in zip(self.peaks, self.places, strict=True):
            if peak is not None:
                place = place_of(layout, peak)
                far = (float(rows), float(columns))
                found.append(far if place is None else (abs(place[0] - row) * rows, abs(place[1] - column) * columns))
        return found

    def hits(self, layout: Layout) -> int:
        """Count the peaks that lie where the probes are, if the layer lay as `layout` says."""
        return sum(max(each) <= HIT for each in self.distances(layout))

    def is_clear(self, layout: Layout) -> bool:
        """Return whether nearly all peaks are about where the probes are, if the layer lay as `layout` says."""
        down, across = map(find_reach, layout.grid)
        near = sum(rows <= down and columns <= across for rows, columns in self.distances(layout))
        share, chance = CLEAR
        return near >= share * max(1, self.seen) and find_chance(near, self.seen, chance_to_reach(layout.grid)) <= chance

    def median(self, layout: Layout) -> float:
        """Return the median distance, in cells; infinite where no probe changes a cell."""
        return statistics.median([math.hypot(*each) for each in self.distances(layout)] or [math.inf])

    def settle(self, candidates: Sequence[Layout]) -> Layout | None:
        """Return the one of the candidates that the hits settle, or else the mean distance; None where these settle none.

        Hits fail where patches leave a border of the picture out, so that cells are off by up to half of one.
        """
        counts = [self.hits(each) for each in candidates]
        best, second = _best_two(counts)
        enough = counts[best] >= max(FEWEST, HITTING[self.sharp] * self.seen) and LEAD * second <= counts[best]
        rows, columns = candidates[best].grid
        if enough and len(candidates) * find_chance(counts[best], self.seen, 1 / (rows * columns)) <= CHANCE:
            return candidates[best]
        means = [-sum(min(max(each), FAR) for each in self.distances(layout)) / max(1, self.seen) for layout in candidates]
        best, second = _best_two(means)
        settled = self.seen >= MANY and -means[best] <= HIT and means[best] - second >= APART
        return candidates[best] if settled else None


def find_reach(count: int) -> float:
    """Return up to how far, in cells, a peak is about where a probe is, along an axis of so many cells."""
    most, share, least = REACH
    return min(most, max(least, share * count))


def chance_to_reach(grid: tuple[int, int]) -> float:
    """Return how probable it is that a peak is about where a probe is by chance, on a grid of (rows, columns)."""
    return math.prod(min(1.0, 2 * find_reach(count) / count) for count in grid)


def find_chance(hits: int, probes: int, share: float) -> float:
    """Return how probable it is that so many of the probes, or more, hit by chance; each does with the probability `share`."""
    return sum(math.comb(probes, each) * share**each * (1 - share) ** (probes - each) for each in range(hits, probes + 1))


def _best_two(values: Sequence[float]) -> tuple[int, float]:
    """Return the place of the largest value, the first of equal ones, and the largest of the others; 0 where there are none."""
    best = max(range(len(values)), key=values.__getitem__)
    return best, max((value for place, value in enumerate(values) if place != best), default=0)


def look_twice(grids: Tensor, places: Sequence[Place]) -> bool:
    """Return whether cells look at two places, mirror images of each other, as where a model adds a map and its mirror image.

    Args:
        grids: what each probe changes of a map, `[K, h, w]`, as it lies in the picture.
        places: where in the map the probes are.
    """
    size = (grids.shape[1], grids.shape[2])
    for flipped in ((True, False), (False, True), (True, True)):
        found = []
        for grid, place in zip(grids, places, strict=True):
            cell = tuple(min(int(max(share, 0) * count), count - 1) for share, count in zip(place, size, strict=True))
            twin = tuple(count - 1 - at if flip else at for at, count, flip in zip(cell, size, flipped, strict=True))
            if max(abs(one - other) for one, other in zip(cell, twin, strict=True)) > 2:
                found.append(_compare_twins(grid, cell, twin))
        if len(found) >= FEWEST:
            share, lead = (statistics.median(each) for each in zip(*found, strict=True))
            if share >= TWIN[0] and lead >= TWIN[1]:
                return True
    return False


def _compare_twins(grid: Tensor, cell: tuple[int, ...], twin: tuple[int, ...]) -> tuple[float, float]:
    """Return the largest change around a twin, as a share of that around a cell, and of the median elsewhere."""
    own, other = (tuple(slice(max(0, at - 1), at + 2) for at in each) for each in (cell, twin))
    there, here, rest = float(grid[other].max()), float(grid[own].max()), grid.clone()
    rest[own] = rest[other] = math.nan
    elsewhere = float(rest.nanmedian().nan_to_num(math.inf))
    return there / here if here else 0.0, there / elsewhere if elsewhere else math.inf


def place_of(layout: Layout, index: int) -> Place | None:
    """Return the middle of the cell that has this index in memory; None for a token that is no cell."""
    cell = index - layout.extra
    if not 0 <= cell < layout.height * layout.width:
        return None
    row, column = divmod(cell, layout.width)
    return layout.turn.place((row + 0.5) / layout.height, (column + 0.5) / layout.width)


def list_readings(layout: Layout) -> Iterator[Layout]:
    """Yield every way in which a layer of this layout may lie, as it was read first: which tokens are no cells, and each turn."""
    yield layout
    tokens = layout.order in ("tokens", "sequence")
    rows, columns = layout.grid
    for transposed, upended, mirrored in product((False, True), repeat=3):
        if transposed and not tokens and rows != columns:
            continue
        height, width = (columns, rows) if transposed else (rows, columns)
        turned = replace(layout, height=height, width=width, turn=Turn(transposed, upended, mirrored))
        for extra in range(layout.others + 1):
            found = replace(turned, extra=extra, behind=layout.others - extra)
            if found != layout:
                yield found
