"""Asks two archives for the same pictures, and sums up how much they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rich.progress import track

from camserve.tools.client.annotations import Area
from camserve.tools.client.client import CamserveError
from camserve.tools.client.result import Result, read_result
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


class Pair(Protocol):
    """The two answers for one picture, `file`; both methods raise CamserveError or OSError where there is none."""

    @property
    def file(self) -> str:
        """The picture's name."""

    def first(self) -> Result:
        """Returns what the first archive answers, for the class that it predicts."""

    @property
    def annotated(self) -> bool:
        """Whether the picture has an annotated area, of which the second is asked."""

    def second(self, target: int) -> Result:
        """Returns what the second answers for the class of this index."""


class PicturePair:
    """Asks both archives for a picture, which is called `file`."""

    def __init__(self, file: str, path: Path, first: AnswerSource, second: AnswerSource, area: Area | None = None) -> None:
        self.file = file
        self.annotated = area is not None
        self._area = {} if area is None else {"inside": area}
        self._path = path
        self._sources = (first, second)

    @cached_property
    def _picture(self) -> bytes:
        return self._path.read_bytes()

    def first(self) -> Result:
        """Asks the first archive."""
        return read_result(self._sources[0].ask(self._picture, {"top_k": 1}))

    def second(self, target: int) -> Result:
        """Asks the second archive."""
        return read_result(self._sources[1].ask(self._picture, {"target": target, **self._area}))


def compare_all(pairs: Iterable[Pair], count: int, classes: Classes) -> Outcome:
    """Compares both answers for every picture, of the class that the first predicts; `count`: how many pictures there are."""
    outcome = Outcome()
    for pair in track(pairs, total=count, description="comparing", transient=True):
        try:
            one = pair.first()
        except (CamserveError, OSError) as error:
            outcome.skipped[pair.file] = str(error)
            continue
        try:
            other = pair.second(classes.match(one.explanations[0].target))
        except (CamserveError, OSError) as error:
            outcome.failed[pair.file] = str(error)
        else:
            outcome.rows.append(compare(pair.file, one, other, classes.match, annotated=pair.annotated))
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
