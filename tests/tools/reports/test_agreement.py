"""Agreement on one picture: the figures against SciPy, torch and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support.comparison.results import GOOD, SILENT, result

from camserve.core.geometry import Rect
from camserve.tools.client.result import Prediction, Result
from camserve.tools.reports.comparison.agreement import centroid_shift, compare, half_overlap, resample, spearman


def test_heatmaps_are_read_as_they_are_drawn() -> None:
    """Bilinear with half-pixel centres, clamped at the border: the numbers of torch's own interpolation."""
    heatmap = np.random.default_rng(0).uniform(size=(7, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.tensor(heatmap)[None, None].double(), size=(32, 32), mode="bilinear")

    found = resample(heatmap, Rect(10, 20, 110, 220), Rect(10, 20, 110, 220))

    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-12)


def test_heatmaps_of_different_views_are_compared_where_both_looked() -> None:
    """The right half of one map is the whole of the other."""
    left = np.tile(np.array([0, 0, 0.2, 0.8, 0.4, 0.6], np.float32), (4, 1))
    found = resample(left, Rect(0, 0, 60, 40), Rect(30, 0, 60, 40), points=3)

    np.testing.assert_allclose(found, np.tile([0.8, 0.4, 0.6], (3, 1)), atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_scipys(seed: int) -> None:
    """With ties, which maps with zeros are full of."""
    from scipy import stats

    random = np.random.default_rng(seed)
    one = random.integers(0, 5, (6, 6)) / 5
    other = one + random.integers(0, 3, (6, 6)) / 4

    assert spearman(one, other) == pytest.approx(stats.spearmanr(one.ravel(), other.ravel()).statistic)
    assert spearman(one, np.ones((6, 6))) is None


def test_overlap_and_shift_by_hand() -> None:
    """Two blocks of two cells of four, one of them shared; centroids one cell of four apart."""
    one, other = np.zeros((4, 4)), np.zeros((4, 4))
    one[1, 0:2] = 1
    other[1, 1:3] = 1

    assert half_overlap(one, other) == pytest.approx(1 / 3)
    assert centroid_shift(one, other) == pytest.approx(0.25 / np.sqrt(2))
    assert centroid_shift(one, np.zeros((4, 4))) is None


@pytest.mark.parametrize(
    ("first", "second", "silent"), [(result(), SILENT, True), (SILENT, result(), False), (SILENT, SILENT, False)]
)
def test_a_map_that_says_nothing_is_not_measured(first: Result, second: Result, silent: bool) -> None:
    """Zeros agree with everything; the measures are None, not 0 or 1. That it is the second's alone is told."""
    row = compare("a.png", first, second)

    assert (row.rank, row.overlap, row.shift) == (None, None, None)
    assert row.silent is silent


def test_a_map_that_says_nothing_where_both_models_looked_is_silent_there() -> None:
    """Its only bright cell lies beside the first's view; half of its maximum, which is 0 there, would be everywhere."""
    corner = np.zeros_like(GOOD)
    corner[0, 3] = 1
    row = compare("a.png", result(view=Rect(0, 0, 20, 40)), result(corner))

    assert (row.silent, row.overlap) == (True, None)


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ((0.9, 0.6, 0.1), (0.6, 0.9, 0.1), False),  # another order, the same labels
        ((0.9, 0.6, 0.1), (0.9, 0.4, 0.1), True),  # one is lost
        ((0.4, 0.3, 0.1), (0.1, 0.3, 0.4), False),  # none in either
    ],
)
def test_of_several_labels_those_that_count_are_compared(
    first: tuple[float, ...], second: tuple[float, ...], changed: bool
) -> None:
    """Whichever is the most probable; the second model may order its classes differently."""

    def labelled(probabilities: tuple[float, ...], turned: bool) -> Result:
        classes = [Prediction(2 - index if turned else index, str(index), each) for index, each in enumerate(probabilities)]
        ranked = tuple(sorted(classes, key=lambda each: -each.probability))
        return replace(result(), predictions=ranked, scores="sigmoid", threshold=0.5)

    assert compare("a.png", labelled(first, False), labelled(second, True), lambda index: 2 - index).changed is changed
