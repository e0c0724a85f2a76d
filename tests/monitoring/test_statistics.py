"""Statistics of maps and of the model's input, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from camserve.explain.observer import sample_rows
from camserve.monitoring.statistics import Scale, input_statistics, map_statistics


def test_statistics_of_a_map_are_those_worked_out_by_hand() -> None:
    """Entropy ratio, area above half maximum, centroid, border energy, overlap and peak of a 2x2 map."""
    found = map_statistics(np.array([[[0, 1], [2, 5]]], dtype=np.float32), np.array([[[1, 1], [1, 1]]], dtype=np.float32))

    shares = [0.125, 0.25, 0.625]
    assert found["entropy"][0] == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(4))
    assert found["area"][0] == 0.25  # of 5 alone: 2 is below 2.5
    assert found["centroid_x"][0] == pytest.approx(0.25 * 0.25 + 0.75 * 0.75)
    assert found["centroid_y"][0] == pytest.approx(0.125 * 0.25 + 0.875 * 0.75)
    assert found["border"][0] == pytest.approx(1 - 0.8**2)  # a cell of a 2x2 map is inside with (0.4 / 0.5)^2 of its area
    assert found["overlap"][0] == pytest.approx(0 + 0.125 + 0.25 + 0.25)
    assert found["peak"][0] == pytest.approx(math.log10(5))


def test_border_energy_counts_the_part_of_a_cell_that_lies_in_the_border() -> None:
    """A tenth of the side is 0.7 of a cell of a 7x7 map."""
    corner, centre = np.zeros((2, 1, 7, 7), dtype=np.float32)
    corner[0, 0, 0] = 1
    centre[0, 3, 3] = 1

    assert map_statistics(corner, corner)["border"][0] == pytest.approx(1 - 0.3**2)
    assert map_statistics(centre, centre)["border"][0] == pytest.approx(0)
    assert map_statistics(centre, corner)["overlap"][0] == 0
    assert map_statistics(centre, centre)["overlap"][0] == 1


def test_an_even_map_has_entropy_one_and_lies_in_the_middle() -> None:
    """Whatever its size."""
    for shape in ((1, 2), (7, 7), (5, 9)):
        found = map_statistics(np.full((1, *shape), 0.3, dtype=np.float32), np.ones((1, *shape), dtype=np.float32))
        assert found["entropy"][0] == pytest.approx(1)
        assert (found["centroid_x"][0], found["centroid_y"][0]) == pytest.approx((0.5, 0.5))


def test_brightness_contrast_and_sharpness_are_the_pictures_own() -> None:
    """They are taken back from the model's normalised input: stripes of black and white, each one pixel wide."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    picture = np.zeros((3, 32, 32), dtype=np.float32)
    picture[:, :, ::2] = 1
    normalised = (picture - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    found = input_statistics(sample_rows(normalised.astype(np.float32))[None], Scale(mean, std))

    assert found["brightness"][0] == pytest.approx(0.5, abs=1e-6)
    assert found["contrast"][0] == pytest.approx(0.5, abs=1e-6)
    assert found["sharpness"][0] == pytest.approx(2, abs=1e-5)


def test_darker_pictures_are_as_sharp_and_even_ones_have_no_sharpness() -> None:
    """So that less light is not taken for a lens out of focus."""
    rows = np.random.default_rng(0).random((1, 3, 16, 64), dtype=np.float32)
    light, dark = (input_statistics(rows * factor, Scale((0,) * 3, (1,) * 3)) for factor in (1, 0.3))

    assert dark["brightness"][0] == pytest.approx(0.3 * light["brightness"][0], rel=1e-5)
    assert dark["sharpness"][0] == pytest.approx(light["sharpness"][0], rel=1e-5)
    assert np.isnan(input_statistics(np.ones_like(rows), None)["sharpness"][0])
