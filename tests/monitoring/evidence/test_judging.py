"""What is unusual: by the reference's tails and rare bins, by classes that it never saw, by the map, and by the confidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support.monitoring.keeping import NOTHING
from tests.support.monitoring.monitors import MADE, look, reference

from camserve.explain.observer import Observation
from camserve.monitoring.evidence.judging import Judge
from camserve.monitoring.measure import measure
from camserve.monitoring.reference import BINS, FORMAT, TAIL, UNSEEN, Reference
from camserve.monitoring.statistics import STATISTICS, Scale
from camserve.tools.watching.baseline import build_reference

SCALE = Scale((0,) * 3, (1,) * 3)


def judged(judge: Judge, *looks: Observation) -> list[list[str]]:
    """The reasons of some predictions, without what `brightness` and the like of these pictures of noise are."""
    of_maps = {"rare.entropy", "rare.area", "rare.centroid_x", "rare.confidence", "degenerate", "unseen", "unsure"}
    return [[each.tag for each in reasons if each.tag in of_maps] for reasons in judge.judge(measure(looks, SCALE))]


def test_without_a_reference_only_maps_and_confidence_are_judged() -> None:
    """There is nothing to compare with."""
    judge = Judge(None, 0.3, "softmax")
    assert judged(judge, look(), look(NOTHING), look(confidence=0.29)) == [[], ["degenerate"], ["unsure"]]
    assert judge.find_groups(measure([look()], SCALE)) is None
    assert judge.find_bins({}, None) == {}


@pytest.mark.parametrize("scores", ["sigmoid", "none"])
def test_only_one_class_among_several_can_be_unsure(scores: str) -> None:
    """Of several labels at once none may be there, and values are no probabilities."""
    assert judged(Judge(None, 0.9, scores), look(confidence=0.1)) == [[]]


def test_a_bin_is_rare_where_hardly_any_picture_of_the_group_is_in_it() -> None:
    """Of class 1 all hundred pictures are in bin 0 (80 of area, which are too few to tell), of class 0 a tenth in each; of unseen
    classes nothing is known."""
    judge = Judge(reference(), 0.0, "softmax")
    right = ((0.1, 8), (0.1, 8))

    assert judged(judge, look(right, 1), look(right, 0), look(right, 77)) == [
        ["rare.entropy", "rare.centroid_x", "rare.confidence"],
        [],
        ["unseen"],
    ]


def test_none_of_few_pictures_is_no_evidence() -> None:
    """Of 60 pictures none in a bin: one in a hundred would as likely be missed. Of 420, no."""
    counts = {name: np.zeros((BINS, BINS), dtype=np.int64) for name in STATISTICS}
    for table in counts.values():
        table[0, 0], table[1, 0] = 60, 360
    few = replace(reference(), counts=counts, images=420)
    right = ((0.1, 8), (0.1, 8))

    assert judged(Judge(few, 0.0, "softmax"), look(right, 0), look(right, 1)) == [
        [],
        ["rare.entropy", "rare.area", "rare.centroid_x", "rare.confidence"],
    ]


def test_what_lies_beyond_the_tails_is_rare_in_any_bin() -> None:
    """And says on which side; on the edge itself it is not."""
    judge = Judge(replace(reference(), tails={"centroid_x": (0.5, 2 / 3)}), 0.0, "softmax")
    (left, middle, right) = judge.judge(measure([look(((3, 1), (3, 1))), look(), look(((0, 1), (0, 8)))], SCALE))
    found = {
        name: [each.about for each in reasons if each.tag == "rare.centroid_x"]
        for name, reasons in {"left": left, "middle": middle, "right": right}.items()
    }

    assert found == {
        "left": [{"statistic": "centroid_x", "bin": 3, "share": TAIL, "side": "low"}],
        "middle": [],
        "right": [{"statistic": "centroid_x", "bin": 7, "share": TAIL, "side": "high"}],
    }


def test_bins_are_those_that_the_monitor_counts() -> None:
    """No map's statistics of a class that the reference never saw, none that the prediction has not."""
    judge = Judge(reference(), 0.0, "softmax")
    values = {**dict.fromkeys(STATISTICS, 0.25), "overlap": None}

    assert judge.find_bins(values, 0) == {name: 2 for name in STATISTICS if name != "overlap"}
    assert set(judge.find_bins(values, UNSEEN)) == {
        "confidence",
        "margin",
        "brightness",
        "contrast",
        "sharpness",
        "width",
        "height",
    }


def test_a_reference_knows_its_tails_and_older_ones_have_none() -> None:
    """Half a hundredth on each side; a reference of an older release keeps its digest, so that its counts go on."""
    random = np.random.default_rng(0)
    looks = [look(random.gamma(1, size=(4, 4)), 0, None, confidence=(place + 1) / 1001) for place in range(1000)]
    made = build_reference(measure(looks, SCALE), [None] * 1000, MADE)

    assert made.tails["confidence"] == pytest.approx((5 / 1001, 995 / 1001))
    assert set(made.tails) == set(made.statistics) >= {"entropy", "margin", "width"}
    values = measure(looks, SCALE).values["centroid_x"]
    low, high = made.tails["centroid_x"]
    assert ((values < low) | (values > high)).sum() <= 10
    again = Reference.from_json(made.to_json())
    assert (again.tails, again.digest) == (made.tails, made.digest)
    older = replace(made, tails={})
    assert '"tails"' not in older.to_json()
    assert f'"format":{FORMAT}' in older.to_json()
    assert Reference.from_json(older.to_json()).digest == older.digest
