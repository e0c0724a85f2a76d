"""float32 values as short decimal numbers, for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def shorten(values: NDArray[np.float32]) -> list[Any]:
    """Turns values into nested lists of Python floats that print as the shortest decimals of the same float32.

    A float32 converted to a Python float prints 17 digits, most of them noise. `float(str(value))` is the short one, but a
    call for each value takes ten times as long as this on a large map. Up to 1, rounding a whole array to more and more
    decimals finds it: the quotient of two whole float64 numbers is the float64 nearest to that decimal. At 7 decimals, where
    this starts, the rounding error is still above float32's, so shorter decimals are found too. Larger values, and the few
    that need more than 12 decimals, are formatted one by one.

    Args:
        values: finite, of any shape.
    """
    exact = values.astype(np.float64)
    result = exact.copy()
    missing = np.ones(values.shape, dtype=np.bool_)
    small = np.abs(exact) <= 1
    for decimals in range(7, 13):
        power = 10.0**decimals
        rounded = np.rint(exact * power) / power
        equal = missing & small & (rounded.astype(np.float32) == values)
        result[equal] = rounded[equal]
        missing &= ~equal
    for place in zip(*np.nonzero(missing), strict=True):
        result[place] = float(str(values[place]))
    nested: list[Any] = result.tolist()
    return nested
