"""What a time's statistics are, estimated of the sample alone, and which pictures moved them: in numbers that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from benchmarks.drift.psi import drift
from tests.support.monitoring.traffic import reference_of, traffic

from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import CLASS, UNSEEN, Reference
from camserve.monitoring.statistics import MAP_STATISTICS, STATISTICS
from camserve.tools.watching.evidence.kept import Seen
from camserve.tools.watching.evidence.numbers.counting import (
    count_sample,
    find_ratios,
    judge_sample,
    rate,
    take_as_reference,
)
from camserve.tools.watching.evidence.numbers.drift import judge
from camserve.tools.watching.evidence.pages.findings import choose_entries

FOUND = reference_of(np.random.default_rng(1).integers(0, 3, 1200))


def seen_of(found: Measurements, reference: Reference, weights: Sequence[float]) -> list[Seen]:
    """Records of such predictions; of weight 0: kept because they are unusual."""
    seen = []
    for place, (target, weight) in enumerate(zip(found.targets, weights, strict=True)):
        group = reference.group(target)
        bins = {
            name: int(reference.assign_bins(name, found.values[name][place : place + 1])[0])
            for name in STATISTICS
            if not np.isnan(found.values[name][place]) and (group != UNSEEN or name not in MAP_STATISTICS)
        }
        entry = Entry(f"m/{place}", "m", str(place), datetime.now(timezone.utc), str(place), target, (), 0)
        seen.append(Seen(entry, reference.digest, "1.0", weight, group, {**bins, CLASS: group}, {}))
    return seen


def camera_moved(target: int, **by: float) -> tuple[Measurements, Any]:
    """1,500 predictions of three classes, of which three fifths of one class have other values; and which these are."""
    random = np.random.default_rng(6)
    targets = random.integers(0, 3, 1500)
    found = traffic(targets, random)
    moved = (targets == target) & (np.arange(1500) < 900)
    for name, change in by.items():
        found.values[name][moved] += change
    return found, moved


def test_a_sample_of_equal_weights_is_judged_as_the_rules_judge() -> None:
    """PSI, threshold and number of pictures are those of the predictions themselves."""
    found = traffic(np.random.default_rng(2).integers(0, 4, 700), np.random.default_rng(3))
    expected = drift(found, FOUND)
    told = judge_sample(count_sample(seen_of(found, FOUND, [5.0] * 700)), FOUND)

    assert told.keys() == expected.psi.keys()
    for name, each in told.items():
        assert each.psi == pytest.approx(expected.psi[name], rel=1e-9)
        assert each.threshold == pytest.approx(expected.threshold[name], rel=1e-9)
        assert each.images == expected.images[name]
    assert [name for name, each in told.items() if each.drifted] == expected.alarms


def test_what_is_unusual_is_not_counted() -> None:
    """However much of it is kept: neither shares, nor PSI, nor the number of pictures change."""
    random = np.random.default_rng(4)
    clean = traffic(random.integers(0, 3, 500), random)
    odd = traffic(np.zeros(2000, dtype=int), random)
    odd.values["centroid_x"] += 9
    alone = count_sample(seen_of(clean, FOUND, [3.0] * 500))
    beside = count_sample([*seen_of(clean, FOUND, [3.0] * 500), *seen_of(odd, FOUND, [0.0] * 2000)])

    assert (beside.images, beside.stands_for) == (500, 1500)
    for name, counts in alone.counts.items():
        np.testing.assert_array_equal(beside.counts[name], counts)
    assert not any(each.drifted for each in judge_sample(beside, FOUND).values())


def test_weights_make_a_sample_of_unequal_hours_as_the_traffic_is() -> None:
    """A quiet hour of which all is kept, and a busy one of which a ninth is: shares are those of all, and it is worth less."""
    random = np.random.default_rng(5)
    quiet, busy = traffic(np.zeros(400, dtype=int), random), traffic(np.full(200, 2), random)
    seen = [*seen_of(quiet, FOUND, [1.0] * 400), *seen_of(busy, FOUND, [9.0] * 200)]
    sample = count_sample(seen)

    assert sample.stands_for == 2200
    assert sample.worth == pytest.approx(2200**2 / (400 + 200 * 81))
    assert sample.mix[[FOUND.group(0), FOUND.group(2)]] == pytest.approx([400 / 2200, 1800 / 2200])
    assert sum(sample.counts["width"]) == pytest.approx(sample.worth)
    assert judge_sample(sample, FOUND)["entropy"].images == round(sample.worth)


def test_what_moved_a_statistic_is_told_from_what_is_always_there() -> None:
    """A fifth, all of one class, are looked at elsewhere, where another class always is: of the first fifty nine in ten are such."""
    found, moved = camera_moved(0, centroid_x=0.9)
    seen = seen_of(found, FOUND, [1.0] * 1500)
    sample = count_sample(seen)
    drifts = judge_sample(sample, FOUND)
    ratios = find_ratios(drifts, FOUND)

    assert drifts["centroid_x"].drifted
    assert not drifts["centroid_y"].drifted
    upward = drifts["centroid_x"].moved
    there = [place for place, each in enumerate(seen) if upward[each.bins["centroid_x"]] > 0]
    there.sort(key=lambda place: rate(seen[place], "centroid_x", drifts, ratios), reverse=True)
    assert np.mean(moved[there[:50]]) >= 0.9
    assert np.mean(moved[there]) < 0.9
    assert drifts["centroid_x"].moved.sum() != pytest.approx(drifts["centroid_x"].psi)
    assert np.abs(upward).sum() == pytest.approx(drifts["centroid_x"].psi)


def test_a_small_sample_beside_what_is_counted_of_all_tells_what_moved() -> None:
    """Of the sample are 20 pictures, too few to tell the classes' bins; the counts of all say which bins are new."""
    found, moved = camera_moved(0, centroid_x=0.9, peak=1.5)
    seen = seen_of(found, FOUND, np.where(np.arange(1500) % 75 == 0, 75.0, 0.0).tolist())
    drifts = judge(FOUND.count(found), FOUND)
    ratios = find_ratios(drifts, FOUND)

    assert [name for name, each in drifts.items() if each.drifted] == ["centroid_x", "peak"]
    for name in ("centroid_x", "peak"):
        most = int(np.argmax(drifts[name].moved))
        there = [place for place, each in enumerate(seen) if each.bins[name] == most]
        there.sort(key=lambda place: rate(seen[place], name, drifts, ratios), reverse=True)
        assert np.mean(moved[there[:50]]) == 1
        assert np.mean(moved[there]) < 0.9


@pytest.mark.numeric
def test_how_much_likelier_a_bin_is_among_what_was_added() -> None:
    """The excess over the expectation, with its standard error, over the class group's share before."""
    found = traffic([0] * 400, np.random.default_rng(7))
    drifts = judge(FOUND.count(found), FOUND)
    ratios = find_ratios(drifts, FOUND)
    entropy, group, place = drifts["entropy"], FOUND.group(1), 4
    added = [
        max(now - old, 0) + math.sqrt(max(old, 1 / 400) / 400) for now, old in zip(entropy.now, entropy.expected, strict=True)
    ]
    before = (FOUND.counts["entropy"][group, place] + 0.5) / (FOUND.group_images[group] + 5)

    assert ratios["entropy"][group, place] == pytest.approx(math.log(added[place] / sum(added) / before), rel=1e-9)
    mix = FOUND.group_images / FOUND.images
    added = [max((place == FOUND.group(0)) - old, 0) + math.sqrt(max(old, 1 / 400) / 400) for place, old in enumerate(mix)]
    before = (FOUND.group_images[group] + 0.5) / (FOUND.images + 5)
    assert ratios["class"][0, group] == pytest.approx(math.log(added[group] / sum(added) / before), rel=1e-9)
    assert not ratios["entropy"][UNSEEN].any()  # the map of a class that the reference never had is compared with nothing
    assert ratios["confidence"][UNSEEN].any()


@pytest.mark.parametrize("lonely", [True, False])
def test_what_is_rare_in_another_way_does_not_come_first(lonely: bool) -> None:
    """A few of a class that was always there fall where it never did: in the statistic alone, or in much but not as the moved ones."""
    found, moved = camera_moved(1, centroid_x=-1, peak=1.5)
    odd = np.flatnonzero(np.array(found.targets) == 2)[:8]
    for name in ("centroid_x",) if lonely else ("centroid_x", "entropy", "area", "centroid_y"):
        found.values[name][odd] = -1
    seen = seen_of(found, FOUND, [0.0] * 1500)
    drifts = judge(FOUND.count(found), FOUND)
    ratios = find_ratios(drifts, FOUND)
    there = [place for place, each in enumerate(seen) if each.bins["centroid_x"] == np.argmax(drifts["centroid_x"].moved)]
    there.sort(key=lambda place: rate(seen[place], "centroid_x", drifts, ratios), reverse=True)

    assert set(odd) < set(there)
    assert np.mean(moved[there[:25]]) > 0.8


def test_an_earlier_time_can_take_the_references_place() -> None:
    """What has drifted from the reference for a day has not since yesterday."""
    random = np.random.default_rng(8)

    def shifted() -> Measurements:
        found = traffic(random.integers(0, 3, 800), random)
        found.values["centroid_x"] += 1
        return found

    before, now = (count_sample(seen_of(shifted(), FOUND, [2.0] * 800)) for _ in range(2))
    assert judge_sample(now, FOUND)["centroid_x"].drifted
    told = judge_sample(now, take_as_reference(before, FOUND))
    assert not any(each.drifted for each in told.values())
    assert told["centroid_x"].expected == pytest.approx(before.counts["centroid_x"] / 800, abs=0.05)


@pytest.mark.parametrize(("size", "most"), [(20_000, 3000), (250_000, 2000), (50_000_000, 100)])
def test_no_more_records_are_read_than_a_page_can_wait_for(size: int, most: int) -> None:
    """By number and by bytes; the sample is thinned evenly, and of the others those come first that the statistic is about."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def entry(place: int) -> Entry:
        reasons = ("sample",) if place % 2 else ("rare.area",) if place % 8 else ("rare.centroid_x",)
        return Entry(f"m/d/{place}", "m", str(place), start + timedelta(seconds=place), str(place), 0, reasons, size)

    chosen = choose_entries([entry(place) for place in range(20_000)], "centroid_x")
    times = [each.time for each in chosen]
    sample = [each for each in chosen if "sample" in each.reasons]
    steps = {(after.time - before.time).seconds for before, after in pairwise(sample)}

    assert len(chosen) == most
    assert times == sorted(times)
    assert len(steps) == 1
    assert most // 2 - most // 10 <= len(sample) <= most // 2
    others = [each.reasons for each in chosen if "sample" not in each.reasons]
    assert others.count(("rare.centroid_x",)) == min(len(others), 2500)
    assert choose_entries([entry(place) for place in range(90)], "") == [entry(place) for place in range(90)]
