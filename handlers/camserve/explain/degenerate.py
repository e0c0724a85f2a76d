"""Maps that say nothing: zero everywhere, constant, or not finite. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REASONS = ("zero", "constant", "not_finite")
CONSTANT = 1e-6
"""A map whose values differ by no more than this share of its maximum is constant: what differs is rounding."""


def find_degenerate(maps: NDArray[np.floating]) -> list[str]:
    """Find the maps that say nothing, and why.

    Args:
        maps: `[M, h, w]`, rectified.

    Returns:
        One of `REASONS` for each map, or "" where the map says something.
    """
    values = maps.astype(np.float64)
    finite = np.isfinite(values).all((1, 2))
    high, low = values.max((1, 2)), values.min((1, 2))
    with np.errstate(invalid="ignore"):
        constant = high - low <= CONSTANT * high
    reasons = np.where(constant, "constant", "")
    reasons = np.where(high == 0, "zero", reasons)
    return [str(reason) for reason in np.where(finite, reasons, "not_finite")]
