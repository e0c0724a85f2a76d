"""Many observations measured at once."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.monitoring.monitors import look

from camserve.monitoring.measure import measure
from camserve.monitoring.statistics import STATISTICS


def test_pictures_of_different_sizes_are_measured_together_as_alone() -> None:
    """A batch may mix sizes; each picture's statistics stay in its place."""
    wide = look(np.arange(15).reshape(3, 5), 1, np.ones((3, 5)), side=48)
    several = [look(), wide, look(((0, 0), (0, 0)), 2), look(rival=None)]
    together = measure(several, None)

    assert together.targets == [0, 1, 2, 0]
    assert together.reasons == ["", "", "zero", ""]
    for place, each in enumerate(several):
        alone = measure([each], None)
        for name in STATISTICS:
            assert together.values[name][place] == pytest.approx(alone.values[name][0], nan_ok=True), name
    assert np.isnan(together.values["entropy"][2])
    assert not np.isnan(together.values["confidence"]).any()
    assert np.isnan(together.values["overlap"][3])
