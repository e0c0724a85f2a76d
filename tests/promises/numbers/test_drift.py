"""Drift told from chance, as the alerts do it: what is no drift, and what is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from benchmarks.drift.psi import drift
from benchmarks.drift.run import divided, wilson
from tests.support.monitoring.traffic import found_nothing, reference_of, traffic, zipf

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import (
    CLASS,
    UNSEEN,
    Provenance,
)
from camserve.monitoring.statistics import MAP_STATISTICS
from camserve.tools.watching.baseline import build_reference


@pytest.mark.parametrize(("classes", "images"), [(1000, 1000), (100, 300), (30, 200)])
def test_long_tailed_clean_traffic_is_no_drift_of_the_class_mix(classes: int, images: int) -> None:
    """There are always classes that the reference has not seen; of 900 windows one in a thousand may be taken for drift."""
    random = np.random.default_rng(2)
    alarms: Counter[str] = Counter()
    estimated, actual = [], []
    for _ in range(60):
        found = reference_of(random.choice(classes, images, p=zipf(classes)))
        estimated.append(found.group_images[UNSEEN] / images)
        actual.append(sum(p for index, p in enumerate(zipf(classes)) if index not in found.groups))
        for _ in range(5):
            for window in (250, 1000, 4000):
                seen = Measurements(
                    found_nothing(window), random.choice(classes, window, p=zipf(classes)).tolist(), [""] * window
                )
                alarms.update(drift(seen, found).alarms)

    assert alarms[CLASS] <= 3
    assert np.mean(estimated) == pytest.approx(np.mean(actual), abs=0.01)


def test_another_class_mix_is_still_told_where_there_are_many_classes() -> None:
    """The tail's share is half as large again, or twenty classes come that were never seen before."""
    random = np.random.default_rng(2)
    found = reference_of(random.choice(1000, 1000, p=zipf(1000)))
    more = random.choice(1000, 1000, p=(zipf(1000) ** 0.5) / (zipf(1000) ** 0.5).sum())
    new = np.where(random.random(1000) < 0.25, 1000 + random.integers(0, 20, 1000), random.choice(1000, 1000, p=zipf(1000)))

    for targets in (more, new):
        assert drift(Measurements(found_nothing(1000), targets.tolist(), [""] * 1000), found).alarms == [CLASS]


def test_pictures_of_unseen_classes_are_no_drift_of_attention() -> None:
    """Half of the window's are of a class that is looked at elsewhere: the mix has changed, and nothing else is said of maps."""
    random = np.random.default_rng(3)
    found = reference_of(random.integers(0, 4, 800))
    window = traffic(random.integers(0, 8, 1000), random)
    for name in MAP_STATISTICS:
        window.values[name][np.array(window.targets) >= 4] += 3
    told = drift(window, found)

    assert set(told.alarms) & {CLASS, *MAP_STATISTICS} == {CLASS}
    assert told.images["area"] == sum(target < 4 for target in window.targets)
    assert told.images["width"] == 1000


def test_unseen_classes_are_expected_to_look_like_rare_ones() -> None:
    """Of the scores and of the pictures themselves all count: that rare things are darker, and less certain, is no drift."""
    random = np.random.default_rng(7)
    several = [traffic([0] * 500 + list(range(start, start + 100)), random) for start in (1, 101)]
    for each in several:
        for name in ("confidence", "brightness"):
            each.values[name][500:] = random.normal(-3, 0.5, 100)
    found = build_reference(several[0], [None] * 600, Provenance("l", "m", "w"))

    assert drift(several[1], found).images["area"] == 500
    assert drift(several[1], found).alarms == []


def test_maps_that_mostly_say_nothing_of_one_class_are_no_drift() -> None:
    """Four of five of class 1's maps in the reference and in the window alike: fewer of them are to be expected."""
    random = np.random.default_rng(4)
    found = reference_of(random.integers(0, 2, 4000), fault=[1])
    told = drift(traffic(random.integers(0, 2, 4000), random, fault=[1]), found)

    assert found.shares("area")[[found.group(0), found.group(1)]].sum(1) == pytest.approx([1, 0.2], abs=0.03)
    assert max(told.psi[name] for name in MAP_STATISTICS) < 0.02
    assert told.alarms == []


def test_few_pictures_and_few_maps_say_nothing() -> None:
    """250 pictures are wanted, a hundred of them of known classes for what is said of maps."""
    random = np.random.default_rng(6)
    found = reference_of(random.integers(0, 2, 1000))
    moved = traffic(random.integers(0, 2, 400), random)
    for name in MAP_STATISTICS:
        moved.values[name][:] += 3
    strange = Measurements(moved.values, [7] * 301 + moved.targets[301:], moved.reasons)

    assert set(drift(moved, found).alarms) == set(MAP_STATISTICS)
    assert drift(divided(moved, 249)[0], found).alarms == []
    assert drift(strange, found).images["area"] == 99
    assert drift(strange, found).alarms == [CLASS]


def test_the_benchmarks_windows_share_no_picture_and_its_intervals_are_wilsons() -> None:
    """Of 1,000 pictures there are four windows of 250 and one of 600; the intervals are those of the literature's tables."""
    pool = Measurements({"area": np.arange(1000.0)}, list(range(1000)), [""] * 1000)

    assert [window.targets for window in divided(pool, 250)] == [list(range(start, start + 250)) for start in (0, 250, 500, 750)]
    assert [len(window.values["area"]) for window in divided(pool, 600)] == [600]
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1, 48) == pytest.approx((0.9259, 1), abs=1e-4)


def test_the_threshold_knows_from_how_many_maps_the_expectation_is() -> None:
    """Two groups, of one of which few maps were measured: the variance of each share is that of as many."""
    found = reference_of([0] * 500 + [1] * 500, fault=[1])
    window = traffic([0] * 200 + [1] * 200, np.random.default_rng(5), fault=[1])
    told = drift(window, found)
    measured = found.table("area").sum(1)[:2].sum()

    assert told.threshold["area"] == pytest.approx(27.877 * (1 / told.images["area"] + 1 / measured))
