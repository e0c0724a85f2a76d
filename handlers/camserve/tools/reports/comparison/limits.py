"""The figures that decide whether one model may replace another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from camserve.tools.reports.comparison.agreement import Agreement


@dataclass(frozen=True)
class Run:
    """All pictures that the first model answers: the agreement on each, and how many the second does not answer."""

    rows: Sequence[Agreement]
    failed: int = 0


@dataclass(frozen=True)
class Limit:
    """A figure of the whole run that `--max-NAME` may bound.

    Where only the second model's heatmap says nothing, it counts as if it had nothing in common with the first's.

    Attributes:
        meaning: what the figure is.
        value: computes it; None where there is nothing to measure.
    """

    name: str
    meaning: str
    value: Callable[[Run], float | None]


SAME = 0.5
"""Heatmaps that overlap so far, at half maximum, look at the same thing."""


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _loss(values: Iterable[float | None]) -> float | None:
    median = _median(values)
    return None if median is None else 1 - median


def _share(several: Sequence[bool], of: int) -> float | None:
    return sum(several) / of if of else None


def _share_same(rows: Sequence[Agreement]) -> float | None:
    """Computes the share of rows that look at the same thing; a second heatmap that says nothing is no better than the same."""
    overlaps = [1.0 if row.silent else row.overlap for row in rows]
    same = [overlap >= SAME for overlap in overlaps if overlap is not None]
    return _share(same, len(same))


FAILED = "failed"
"""The limit that is 0 where another one is given and it is not: no gate may open because a model fails."""

OUTSIDE = "outside"
"""The limit that needs annotated areas."""

LIMITS = (
    Limit(
        FAILED,
        "share of the pictures that the first answers and the second does not",
        lambda run: _share([True] * run.failed, len(run.rows) + run.failed),
    ),
    Limit(
        "changed",
        "share of the pictures whose predicted class changed",
        lambda run: _share([row.changed for row in run.rows], len(run.rows)),
    ),
    Limit(
        "confidence",
        "median change of the compared class's probability",
        lambda run: _median(row.confidence for row in run.rows),
    ),
    Limit(
        "silent",
        "share of the pictures on which only the second's heatmap says nothing",
        lambda run: _share([row.silent for row in run.rows], len(run.rows)),
    ),
    Limit(
        "rank-loss",
        "1 minus the median rank correlation of the heatmaps",
        lambda run: _loss(0.0 if row.silent else row.rank for row in run.rows),
    ),
    Limit(
        "overlap-loss",
        "1 minus the median overlap of the heatmaps at half maximum",
        lambda run: _loss(0.0 if row.silent else row.overlap for row in run.rows),
    ),
    Limit(
        "shift",
        "median shift of the heatmaps' centroid, of the diagonal",
        lambda run: _median(1.0 if row.silent else row.shift for row in run.rows),
    ),
    Limit(
        "same",
        f"share of the pictures on which both heatmaps overlap by {SAME:g} or more: small is good where the first was wrong",
        lambda run: _share_same(run.rows),
    ),
    Limit(
        OUTSIDE,
        "median share of the second's map that lies outside of the annotated area (--inside-file)",
        lambda run: _median(None if row.inside is None else 1 - row.inside for row in run.rows),
    ),
)
