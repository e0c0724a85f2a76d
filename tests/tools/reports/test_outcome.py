"""What came of all pictures: figures, limits, and the worst first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.support.comparison.results import GOOD, SILENT, result

from camserve.tools.client.result import Prediction, Result
from camserve.tools.commands.compare import limits_of, parser
from camserve.tools.reports.comparison.agreement import compare
from camserve.tools.reports.comparison.limits import LIMITS, OUTSIDE
from camserve.tools.reports.comparison.outcome import Outcome, summarise


def reported(pairs: list[tuple[Result, Result]], *limits: str, failed: int = 0) -> dict[str, Any]:
    """What is told of such answers, and of so many pictures that the second does not answer."""
    rows = [compare(f"{place}.png", *pair) for place, pair in enumerate(pairs)]
    outcome = Outcome(rows, {f"failed{place}.png": "500 InternalError: no" for place in range(failed)})
    return summarise(["m 1.0", "m 1.0"], outcome, "", limits_of(parser().parse_args(["a", "b", "c", *limits])))


def test_a_figure_that_cannot_be_measured_does_not_keep_its_limit() -> None:
    """Maps that say nothing must not pass for maps that agree."""
    told = reported([(SILENT, result())], "--max-shift", "1")

    assert told["figures"]["shift"] is None
    assert told["exceeded"] == ["shift"]


def test_a_second_model_whose_maps_say_nothing_is_as_far_off_as_can_be() -> None:
    """On two pictures of three: a median of what is left would be that of the one on which the two agree."""
    pairs = [(result(), SILENT), (result(), SILENT), (result(), result())]
    told = reported(pairs, "--max-overlap-loss", "0.9", "--max-rank-loss", "0.9", "--max-shift", "0.9", "--max-silent", "0.5")

    assert told["figures"] == {
        **{"failed": 0, "changed": 0, "confidence": 0, "silent": pytest.approx(2 / 3)},
        **{"rank-loss": 1, "overlap-loss": 1, "shift": 1, "same": 1, "outside": None},
    }
    assert told["exceeded"] == ["silent", "rank-loss", "overlap-loss", "shift"]


def test_a_second_model_that_fails_keeps_no_gate_open() -> None:
    """Whichever limit is given, unless that on failures is; without any limit there is no gate."""
    for limit in LIMITS:
        if limit.name == OUTSIDE:  # these pictures have no areas
            continue
        told = reported([(result(), result())], f"--max-{limit.name}", "1", failed=3)
        assert told["figures"]["failed"] == 0.75
        assert told["exceeded"] == ([] if limit.name == "failed" else ["failed"]), limit.name
    assert reported([(result(), result())], failed=3)["exceeded"] == []
    assert reported([(result(), result())], "--max-failed", "0.5", failed=3)["exceeded"] == ["failed"]
    assert reported([(result(), result())], "--max-failed", "0.5", "--max-shift", "1", failed=1)["exceeded"] == []


def test_the_worst_come_first() -> None:
    """Another class, then no map where the first has one, then little overlap; where the first has none, last."""
    apart = np.fliplr(GOOD).copy()
    other = result()
    rows = [
        compare("same", result(), result()),
        compare("first silent", SILENT, result()),
        compare("second silent", result(), SILENT),
        compare("apart", result(), result(apart)),
        compare("changed", result(), replace(other, predictions=(Prediction(1, "dark", 0.5),))),
    ]

    assert [row.file for row in Outcome(rows).rank_worst()][:3] == ["changed", "second silent", "apart"]
