"""The reference: its counts, its shares, and when it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.monitoring.traffic import reference_of

from camserve.core.config import Config
from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import (
    BINS,
    FILE,
    INPUT,
    LATER_INPUT,
    PER_GROUP,
    UNSEEN,
    Provenance,
    Reference,
    StaleReference,
    input_of,
    load,
)
from camserve.monitoring.statistics import STATISTICS
from camserve.tools.watching.baseline import build_reference


def test_how_many_pictures_the_shares_of_unseen_classes_are_known_from() -> None:
    """All, where too few classes came up once; their own, where these are enough."""
    few = reference_of([0] * 60 + list(range(1, PER_GROUP)))
    many = reference_of([0] * 60 + list(range(1, PER_GROUP + 1)))

    assert (few.group_images[UNSEEN], few.known_images[UNSEEN]) == (PER_GROUP - 1, 60 + PER_GROUP - 1)
    assert many.group_images[UNSEEN] == many.known_images[UNSEEN] == PER_GROUP
    assert few.known_images[0] == few.group_images[0] == 60


def test_what_came_up_once_counts_as_unseen() -> None:
    """Good's estimate: so many predictions to come are of classes that the reference never saw, and of the others fewer."""
    found = reference_of([0] * 60 + [1] * 50 + [2] * 50 + [3, 4, 5, 6] + [7] * 36)

    assert found.group_images[UNSEEN] == 4
    assert found.group_images.sum() == found.images == 200
    assert {found.group(index) for index in (3, 4, 5, 6)} <= set(range(UNSEEN))
    assert found.group(8) == UNSEEN
    assert found.counts["area"].sum(1).tolist() == found.group_images.tolist()
    assert found.table("area")[UNSEEN].sum() == 0
    assert found.table("width")[UNSEEN].sum() == 4


@pytest.fixture
def found() -> Reference:
    """A reference of 120 made-up pictures of two classes."""
    random = np.random.default_rng(0)
    values = {name: random.random(120) for name in STATISTICS}
    values["overlap"][:20] = np.nan
    targets = [4] * 70 + [9] * 50
    shares: list[Any] = [np.array([[0.25, 0.75]])] * 30 + [np.array([[0.75, 0.25]])] * 40 + [None] * 50
    return build_reference(Measurements(values, targets, [""] * 120), shares, Provenance("features", "gradcam++", "sha256:1"))


def test_counts_are_by_group_and_leave_out_what_was_not_measured(found: Reference) -> None:
    """Their sums are the numbers of pictures."""
    assert found.images == 120
    assert found.group_images[:2].tolist() == [70, 50]
    assert found.counts["overlap"].sum() == 100
    assert found.counts["entropy"].sum(0).tolist() == [12] * BINS


def test_attention_is_the_mean_of_a_classs_maps_where_there_are_enough(found: Reference) -> None:
    """Class 9 has no map that says something."""
    assert set(found.attention) == {4}
    assert found.attention[4].grid == pytest.approx(np.array([[(30 * 0.25 + 40 * 0.75) / 70, (30 * 0.75 + 40 * 0.25) / 70]]))


def test_a_reference_is_read_as_it_was_written(found: Reference, tmp_path: Path) -> None:
    """Edges to the last bit: they decide into which bin a picture falls."""
    (tmp_path / FILE).write_text(found.to_json())
    again = load(tmp_path, found.provenance)

    assert again is not None
    assert (again.edges, again.groups, again.images, again.provenance) == (
        found.edges,
        found.groups,
        found.images,
        found.provenance,
    )
    assert all(np.array_equal(again.counts[name], found.counts[name]) for name in STATISTICS)
    assert np.allclose(again.attention[4].grid, found.attention[4].grid, atol=1e-5)
    assert load(tmp_path / "nowhere", found.provenance) is None
    assert again.digest == found.digest


def test_a_remade_reference_has_another_name(found: Reference) -> None:
    """Its bins are others, and counts by the old ones must not be added to them."""
    names = {reference_of(range(200), seed).digest for seed in range(20)}

    assert len(names) == 20
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in names)


@pytest.mark.parametrize(
    "age",
    [
        lambda values: {**values, "format": 1},
        lambda values: {**values, "made": {name: value for name, value in values["made"].items() if name != "input"}},
    ],
)
def test_a_reference_of_an_older_release_is_told_and_not_used(found: Reference, tmp_path: Path, age: Any) -> None:
    """What it counts as unseen, or what its pictures went through, is not known."""
    (tmp_path / FILE).write_text(json.dumps(age(json.loads(found.to_json()))))

    with pytest.raises(StaleReference, match=f"{FILE} is of an older release; make it again"):
        load(tmp_path, found.provenance)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"format":2', '"format":3'),
        lambda text: text.replace('"format":2', '"format":"2"'),
        lambda text: json.dumps({**json.loads(text), "edges": {}}),
        lambda text: json.dumps({**json.loads(text), "groups": {"4": 9}}),
        lambda text: json.dumps(
            {**json.loads(text), "edges": {**json.loads(text)["edges"], "area": [2, 1, 3, 4, 5, 6, 7, 8, 9]}}
        ),
        lambda text: json.dumps({**json.loads(text), "counts": {**json.loads(text)["counts"], "area": [[1]]}}),
    ],
)
def test_a_damaged_reference_is_told_and_not_used(found: Reference, tmp_path: Path, damage: Any) -> None:
    """Wrong bins would be worse than none."""
    (tmp_path / FILE).write_text(damage(found.to_json()))

    with pytest.raises(StaleReference, match="cannot be read"):
        load(tmp_path, found.provenance)


@pytest.mark.parametrize(("name", "now"), [("layer", "layer4"), ("method", "gradcam"), ("weights", "sha256:2")])
def test_a_reference_of_another_model_is_told_and_not_used(found: Reference, tmp_path: Path, name: str, now: str) -> None:
    """Maps of another layer, method or model are not comparable."""
    (tmp_path / FILE).write_text(found.to_json())

    with pytest.raises(StaleReference, match=f"made with the {name} .*, the archive now has {now}"):
        load(tmp_path, Provenance(**{**vars(found.provenance), name: now}))


OTHERS: dict[str, Any] = {
    "resize": 288,
    "crop": [224, 192],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.25],
    "exif": True,
    "precision": "bfloat16",
    "channels": 5,
    "fit": "squash",
    "fill": [0.5],
    "scale": 255,
    "fast_jpeg": True,
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_reference_of_pictures_prepared_otherwise_is_told_and_not_used(found: Reference, tmp_path: Path, key: str) -> None:
    """The message says what it was, and what it is."""
    now, then = replace(Config(), **{key: OTHERS[key]}), Config()
    (tmp_path / FILE).write_text(
        reference_of(range(200)).to_json().replace('"input":""', f'"input":{json.dumps(input_of(then))}')
    )

    assert set(OTHERS) == {*INPUT, *LATER_INPUT}
    assert load(tmp_path, Provenance("l", "m", "w", input_of(then))) is not None
    with pytest.raises(StaleReference) as told:
        load(tmp_path, Provenance("l", "m", "w", input_of(now)))
    before, after = (f"{key}={json.dumps(getattr(each, key), separators=(',', ':'))}" for each in (then, now))
    before = "nothing of it" if key in LATER_INPUT else before
    assert str(told.value) == f"{FILE} was made with {before}, the archive now has {after}; make it again"
