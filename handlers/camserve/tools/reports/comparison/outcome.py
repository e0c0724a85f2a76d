"""Asks two archives for the same pictures, and sums up how much they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import read_result
from camserve.tools.client.sources import AnswerSource
from camserve.tools.reports.comparison.agreement import Agreement, compare
from camserve.tools.reports.comparison.classes import Classes
from camserve.tools.reports.comparison.limits import FAILED, LIMITS, Run


@dataclass(frozen=True)
class Outcome:
    """What came of the pictures.

    Attributes:
        rows: the agreement on each picture that both answer.
        failed: why the second archive does not answer, by file.
        skipped: why the first archive does not, by file.
        kinds: of the first's and the second's scores, where they differ.
    """

    rows: list[Agreement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    kinds: set[tuple[str, str]] = field(default_factory=set)

    def describe_kinds(self) -> str:
        """Says that probabilities are of different kinds, where they are; else ""."""
        parts = [f"the first's scores are {one} and the second's {other}" for one, other in sorted(self.kinds)]
        return f"{'; '.join(parts)}: their probabilities do not mean the same" if parts else ""

    def explain_first(self) -> str:
        """Says which picture is the first that could not be compared, and why."""
        for who, reasons in (("second", self.failed), ("first", self.skipped)):
            for file, why in reasons.items():
                return f"for {file} the {who} says: {why}"
        return "there are none"

    def rank_worst(self) -> list[Agreement]:
        """Sorts rows: changed classes, then pictures on which only the second's heatmap says nothing, then by overlap."""
        return sorted(self.rows, key=lambda row: (not row.changed, not row.silent, 1 if row.overlap is None else row.overlap))


def ask_both(first: AnswerSource, second: AnswerSource, classes: Classes, paths: Sequence[Path]) -> Outcome:
    """Asks both for an explanation of every picture, of the class that the first predicts."""
    outcome = Outcome()
    for path in track(paths, description="comparing", transient=True):
        try:
            picture = path.read_bytes()
            one = read_result(first.ask(picture, {"top_k": 1}))
        except (CamserveError, OSError) as error:
            outcome.skipped[str(path)] = str(error)
            continue
        try:
            other = read_result(second.ask(picture, {"target": classes.match(one.explanations[0].target)}))
        except CamserveError as error:
            outcome.failed[str(path)] = str(error)
        else:
            outcome.rows.append(compare(str(path), one, other, classes.match))
            if one.scores != other.scores:
                outcome.kinds.add((one.scores, other.scores))
    return outcome


def summarise(names: Sequence[str], outcome: Outcome, classes: str, limits: Mapping[str, float]) -> dict[str, Any]:
    """Sums up a run, as JSON and the report have it.

    Args:
        names: what the two archives are called.
        outcome: what came of the pictures.
        classes: how the classes of the two differ.
        limits: by their names in `LIMITS`, those that were given.

    Returns:
        `figures` by the limits' names, the `limits` that hold, the names of those that are `exceeded`, and the outcome.
    """
    run = Run(outcome.rows, len(outcome.failed))
    figures = {limit.name: limit.value(run) for limit in LIMITS}
    held = {FAILED: 0.0, **limits} if limits else {}
    return {
        "first": names[0],
        "second": names[1],
        "classes": classes,
        "pictures": len(outcome.rows),
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "figures": figures,
        "limits": held,
        "exceeded": [name for name, limit in held.items() if not _keeps(figures[name], limit)],
        "rows": [asdict(row) for row in outcome.rows],
    }


def _keeps(figure: float | None, limit: float) -> bool:
    """Tells whether a figure keeps its limit; one that cannot be measured does not."""
    return figure is not None and figure <= limit
