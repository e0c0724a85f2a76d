"""Decimal numbers for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def shorten(values: NDArray[np.float32]) -> list[Any]:
    """Nested lists of Python floats that print as the shortest decimals that read back as the same float32.

    A float32 turned into a Python float prints 17 digits, most of them noise. Up to 1, rounding to ever more decimals finds
    the short one for a whole array at once: the quotient of two whole float64 numbers is the float64 nearest to that decimal.
    The rounding starts at 7 decimals, where its error is still above that of float32, so it finds any shorter decimal too.
    Other values, and the few that need more than 12 decimals, are formatted one by one.

    Args:
        values: finite, any shape.
    """
    exact = values.astype(np.float64)
    result = exact.copy()
    missing = np.ones(values.shape, dtype=np.bool_)
    small = np.abs(exact) <= 1
    for decimals in range(7, 13):
        power = 10.0**decimals
        rounded = np.rint(exact * power) / power
        found = missing & small & (rounded.astype(np.float32) == values)
        result[found] = rounded[found]
        missing &= ~found
    for place in zip(*np.nonzero(missing), strict=True):
        result[place] = float(str(values[place]))
    nested: list[Any] = result.tolist()
    return nested
