"""Maps that say nothing."""

from __future__ import annotations

import numpy as np

from camserve.explain.degenerate import find_degenerate


def test_degenerate_maps_are_told_by_reason() -> None:
    """The contract's warnings: zero, constant within rounding, not finite."""
    maps = np.ones((5, 2, 2), dtype=np.float32)
    maps[0] = 0
    maps[2, 0, 0] = np.nan
    maps[3, 0, 0] = np.inf
    maps[4, 0, 0] = 1.00001

    assert find_degenerate(maps) == ["zero", "constant", "not_finite", "not_finite", ""]
