"""The reference's making: even bins, and groups of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.monitoring.traffic import SKEWED, reference_of

from camserve.monitoring.reference import (
    BINS,
    PER_GROUP,
    UNSEEN,
)
from camserve.tools.watching.baseline import FEWEST, average_attention, compute_edges, group_classes


def binned(values: list[float]) -> list[int]:
    """How many of the values each of their own bins holds."""
    edges = np.array(compute_edges(np.array(values, dtype=np.float64)))
    counts: list[int] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=BINS).tolist()
    return counts


def test_bins_hold_a_tenth_of_the_pictures_each() -> None:
    """Where values are many, and in whatever order they come."""
    assert binned([(7 * each) % 100 for each in range(100)]) == [10] * BINS
    assert binned(np.random.default_rng(0).normal(size=1000).tolist()) == [100] * BINS


def test_edges_lie_between_values_that_occur() -> None:
    """So that rounding on another machine moves no value into another bin."""
    values = np.repeat(np.arange(20) / 49, 5)
    edges = compute_edges(values)

    assert not set(edges) & set(values.tolist())
    assert all(np.isclose(edge * 49 % 1, 0.5) for edge in edges)


def test_bins_are_as_even_as_repeated_values_allow() -> None:
    """Half of the pictures have one and the same value: its bin holds them all, the others share the rest."""
    counts = binned([0.5] * 50 + [0.5 + each / 100 for each in range(1, 51)])

    assert max(counts) == 50
    assert sum(counts) == 100
    assert sorted(counts)[-2] <= 11


def test_few_values_get_a_bin_each_and_so_does_what_lies_beyond() -> None:
    """A camera's pictures have one width: both a larger and a smaller one must be seen."""
    edges = np.array(compute_edges(np.array([640.0] * 30)))
    bins = np.searchsorted(edges, [320, 640, 800], side="right")

    assert len(set(bins.tolist())) == 3
    assert binned([1.0, 2.0, 2.0, 3.0]) == [0, 1, 2, 1, *[0] * 6]


def test_a_statistic_that_no_picture_has_gets_edges_all_the_same() -> None:
    """A model of one class has no runner-up to overlap with."""
    assert compute_edges(np.empty(0)) == (0.0,) * (BINS - 1)


def test_groups_of_classes_are_even_and_keep_classes_whole() -> None:
    """Common classes get a group of their own; a group has some fifty pictures."""
    targets = [7] * 100 + [3] * 90 + [1] * 30 + [2] * 30 + [5] * 30
    groups = group_classes(targets)

    assert groups[7] != groups[3]
    assert sorted(sum(groups[each] == group for each in targets) for group in set(groups.values())) == [30, 30, 30, 90, 100]
    assert set(group_classes([1, 2, 3] * 10).values()) == {0}
    assert max(group_classes(list(range(500)) * 2).values()) == UNSEEN - 1
    assert group_classes([]) == {}


@pytest.mark.parametrize("targets", SKEWED.values(), ids=SKEWED)
def test_small_groups_of_classes_are_merged(targets: list[int]) -> None:
    """No group is of a handful of pictures; and no share of bins is of fewer than fifty, where the reference has as many."""
    found = reference_of(targets)
    sizes = found.group_images
    groups = sorted(set(found.groups.values()))
    pools = [frozenset(pool) for pool in found._pools()]

    assert len(groups) == 1 or min(sizes[groups]) >= FEWEST
    assert sorted(group for pool in pools for group in pool) == groups
    assert len(pools) == 1 or min(sizes[sorted(pool)].sum() for pool in pools) >= PER_GROUP
    for pool in pools:
        rows = [found.shares("area")[group].tolist() for group in pool]
        assert all(row == rows[0] for row in rows)
    assert found.shares("area")[groups].sum(1) == pytest.approx([1.0 if sizes[groups].any() else 0.0] * len(groups))


def test_a_rare_class_keeps_a_group_of_its_own_in_the_class_mix() -> None:
    """Its 20 pictures of 1,000 are too few for shares of bins, which it has together with others, and enough for one share."""
    assert reference_of(SKEWED["98 to 2 %"]).group_images[:2].tolist() == [980, 20]
    found = reference_of(SKEWED["three classes and a rare one"])
    assert sorted(found.group_images[:4].tolist()) == [20, 150, 330, 500]
    assert {len(pool) for pool in found._pools()} == {1, 2}
    assert reference_of(SKEWED["98 to 2 % of few"]).group_images[:2].tolist() == [100, 0]


def test_attention_of_a_class_with_few_pictures_or_maps_of_several_sizes_is_left_out() -> None:
    """A mean of nineteen maps is mostly chance; maps of different sizes have none."""
    square, wide = np.full((2, 2), 0.25), np.full((1, 4), 0.25)
    shares: list[Any] = [square] * 19 + [square] * 20 + [square] * 19 + [wide]

    assert set(average_attention([1] * 19 + [2] * 20 + [3] * 20, shares)) == {2}
