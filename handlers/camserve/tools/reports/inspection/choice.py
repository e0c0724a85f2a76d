"""The best layer and method by what was measured, by a stated rule, and what the report says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camserve.core.messages import name_layer
from camserve.core.version import __version__
from camserve.tools.reports.inspection.fidelity import SEED, Candidate, Measured

Floats = NDArray[np.float64]

RESAMPLES = 2000
"""Of the pictures, and of the mosaics, by which intervals are found (bootstrap)."""

CHANCE = 0.25
"""Of grid pointing."""

MOST_ALIKE = 0.5
"""Mean likeness to the map under weights drawn anew above which a layer and method are out: such maps show the picture."""

RULE = (
    "The score is the mean of grid pointing beyond chance, (share - 0.25) / 0.75, and of insertion less deletion; the latter "
    "alone where they are of fewer than four classes. Out are those whose maps stay alike when the weights are drawn anew "
    f"(rank correlation above {MOST_ALIKE}). Of those whose score is not surely below the best one's (95 % interval of the "
    "difference, by resampling pictures and mosaics) the archive's own layer and method are kept where they are among them, else "
    "the cheapest is taken."
)
"""How the best is found, for the report."""


ALONE = "nothing else was measured"
"""What is said of a layer and method that no other was compared with."""

ALL_OUT = "; its maps stay alike when the weights are drawn anew, as all that were measured, so they may show the picture alone"
"""What is said where nothing that was measured stands."""


@dataclass(frozen=True)
class Figure:
    """One column of the report.

    Attributes:
        name: in JSON, that of the field of `Measured`.
        title: of the column.
        meaning: in one sentence.
    """

    name: str
    title: str
    meaning: str


FIGURES = (
    Figure("pointing", "grid pointing", "the share of a class's map in its own picture's quarter of a mosaic; chance 0.25"),
    Figure(
        "gain",
        "insertion less deletion",
        "how much sooner the score rises when the brightest cells are shown than it stays when they are hidden; random about 0",
    ),
    Figure(
        "support",
        "support",
        "what the brightest cells do to the score more than others do; from 0.2 a check calls a map supported",
    ),
    Figure(
        "other_class",
        "other class",
        "rank correlation with the map of a class drawn at random; a map that tells classes apart has little",
    ),
    Figure(
        "random_weights",
        "random weights",
        "rank correlation with the map under weights drawn anew; a map of what was learnt has little",
    ),
)


def choose(measured: Mapping[Candidate, Measured], own: Candidate, seed: int = SEED) -> dict[str, Any]:
    """Choose, and write down everything that a report says, as JSON.

    Args:
        measured: of each layer and method.
        own: the layer and method that are the default so far; it need not be among them.

    Returns:
        `rule`, `seed`, `pictures`, `quarters`, `rows` (each its `layer`, `method`, `figures`, `cost`, `score`, and whether it is
        `out` or `tied` with the best), `best` and `own` (`layer` and `method`), and `why`.
    """
    random = np.random.default_rng(seed)
    candidates = list(measured)
    first = measured[candidates[0]]
    picks = random.integers(0, len(first.gain), (RESAMPLES, len(first.gain)))
    mosaics = len(first.pointing) // 4
    pointed = random.integers(0, mosaics, (RESAMPLES, mosaics)) if mosaics else None
    scores = {each: _scores(measured[each], picks, pointed) for each in candidates}
    middle = {each: _score(measured[each]) for each in candidates}
    out = {each for each in candidates if np.mean(measured[each].random_weights or [0.0]) > MOST_ALIKE}
    standing = [each for each in candidates if each not in out] or candidates
    top = max(standing, key=lambda each: middle[each])
    tied = [each for each in standing if each == top or np.quantile(scores[top] - scores[each], 0.025) <= 0]
    best = own if own in tied else min(tied, key=lambda each: (round(measured[each].cost, 1), -middle[each]))
    beaten = {each: "the archive's own is surely below it" for each in candidates if each not in tied}
    beaten |= dict.fromkeys(out, "the archive's own is out")
    rows = [
        {
            **_name(each),
            "figures": {figure.name: _interval(measured[each], figure.name, seed) for figure in FIGURES},
            "cost": round(measured[each].cost, 3),
            "score": {"mean": _round(middle[each]), **_ends(scores[each])},
            "out": each in out,
            "tied": each in tied,
        }
        for each in candidates
    ]
    return {
        "camserve": __version__,
        "rule": RULE,
        "seed": seed,
        "pictures": len(first.gain),
        "quarters": len(first.pointing),
        "best": _name(best),
        "own": _name(own),
        "why": (_explain(best, own, top, tied, beaten) if len(candidates) > 1 else f"{best[1]} of {name_layer(best[0])}: {ALONE}")
        + (ALL_OUT if best in out else ""),
        "rows": rows,
    }


def _name(candidate: Candidate) -> dict[str, str]:
    return {"layer": name_layer(candidate[0]), "method": candidate[1]}


def _explain(best: Candidate, own: Candidate, top: Candidate, tied: Sequence[Candidate], beaten: Mapping[Candidate, str]) -> str:
    """Say why in one sentence."""
    said, rest = f"{best[1]} of {name_layer(best[0])}: ", len(tied) - 1
    if not rest:
        return said + "its score is surely above all others'"
    others = f"{rest} other{'s' if rest > 1 else ''} may be as good"
    if best == own:
        standing = "has the best score" if best == top else "is not surely below the best score"
        return said + f"the archive's own, which {standing}; {others}"
    reason = beaten.get(own, "")
    return said + f"the cheapest of those that may have the best score; {others}{reason and f'; {reason}'}"


def _score(measured: Measured) -> float:
    gain = float(np.mean(measured.gain))
    return (gain + (float(np.mean(measured.pointing)) - CHANCE) / (1 - CHANCE)) / 2 if measured.pointing else gain


def _scores(measured: Measured, picks: NDArray[np.int64], pointed: NDArray[np.int64] | None) -> Floats:
    """Compute the score of each resample; the four quarters of a mosaic are drawn together."""
    gains: Floats = np.array(measured.gain)[picks].mean(1)
    if pointed is None:
        return gains
    shares: Floats = np.array(measured.pointing).reshape(-1, 4).mean(1)[pointed].mean(1)
    return (gains + (shares - CHANCE) / (1 - CHANCE)) / 2


def _interval(measured: Measured, name: str, seed: int) -> dict[str, float] | None:
    """Compute a figure's mean and its 95 % interval, by resampling, whatever else is measured; None where there are no values."""
    values = np.array(getattr(measured, name))
    if not len(values):
        return None
    if name == "pointing":
        values = values.reshape(-1, 4).mean(1)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[picks].mean(1)
    return {"mean": _round(float(np.mean(values))), **_ends(means)}


def _ends(means: Floats) -> dict[str, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return {"low": _round(float(low)), "high": _round(float(high))}


def _round(value: float) -> float:
    return round(value, 4) + 0.0
