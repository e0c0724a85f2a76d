"""How far a heatmap is borne out, as answers tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Hidden:
    """A target's score by how its picture was filled, `blur` or `mean`: with cells hidden, and with only these shown."""

    hidden: Mapping[str, tuple[float, ...]]
    shown: Mapping[str, tuple[float, ...]]


VERDICTS = ("supported", "weak", "unsupported")
"""Of a check, the best first."""

SHARES = (0.1, 0.2, 0.4)
"""Shares of a heatmap's cells that a check hides, and shows alone, the brightest first."""

FILLS = ("blur", "mean")
"""What hides them."""


@dataclass(frozen=True)
class Check:
    """How far a heatmap is borne out when the model is asked again; `explain/faithfulness` has the rule.

    Attributes:
        verdict: `supported`, `weak` or `unsupported`.
        support: what the brightest cells do to the score more than others do, as a share of what the whole picture does.
        shares: of the cells that are hidden and shown.
        brightest: what the heatmap's brightest cells do, by share.
        random: what as many random cells do, with the blur.
        moved: what the heatmap's brightest cells do where the heatmap is moved elsewhere, with the mean colour.
        empty: the score with everything hidden, by fill.
        deletion: area under the score by the share of cells that are hidden, brightest first; small speaks for the map.
        insertion: area under the score by the share that is shown; large speaks for it.
    """

    verdict: str
    support: float
    shares: tuple[float, ...]
    brightest: Hidden
    random: Hidden
    moved: Hidden
    empty: Mapping[str, float]
    deletion: float
    insertion: float
