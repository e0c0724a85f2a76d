"""A record reads as it was written, its name tells time, class and reasons, and what is damaged is said to be."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from tests.support.monitoring.keeping import SOURCE, at, record

from camserve.core.messages import Score
from camserve.monitoring.evidence.names import TAGS, Entry, make_id, name_folder, name_record
from camserve.monitoring.evidence.records import EvidenceError, Picture, Reason, Record
from camserve.monitoring.statistics import STATISTICS

RARE = Reason("rare", {"statistic": "centroid_x", "bin": 9, "share": 0.005, "side": "high"})


def test_a_record_reads_as_it_was_written() -> None:
    """All of it, and the map bit for bit; labels of any script."""
    map_ = np.random.default_rng(0).gamma(1, size=(3, 5)).astype(np.float32)
    kept = record(
        at(3, 1, 12, 30, 15, 123_000),
        reasons=(Reason("sample", {"weight": 37.5}), RARE, Reason("degenerate", {"warning": "zero"})),
        classes=(Score(285, 'Ägypten </script> "猫"', 0.31),),
        raw_map=map_,
        picture=Picture("whole", "", b"\xff\xd8jpeg", (512, 341), b"\x89PNG", "image/png"),
    )
    again = Record.read(kept.to_json())

    assert again == kept
    assert again.raw_map.tobytes() == map_.tobytes()
    assert again.raw_map.shape == (3, 5)
    assert again.heatmap == pytest.approx((map_ - map_.min()) / (map_.max() - map_.min()), abs=1e-6)


def test_what_is_not_known_is_null() -> None:
    """A tensor without a reference: no picture, no size, no group."""
    kept = record(at(1, 2), image=None, view=None, group=None, bins={}, picture=Picture("none", "tensor"))
    values = json.loads(kept.to_json())

    assert (values["image"], values["view"], values["group"], values["picture"]) == (
        None,
        None,
        None,
        {"kind": "none", "why": "tensor"},
    )
    assert values["statistics"]["overlap"] is None
    assert set(values["statistics"]) == set(STATISTICS)
    assert Record.read(kept.to_json()) == kept


@pytest.mark.parametrize("values", [[[0, 0]], [[2, 2]], [[1, np.nan]], [[np.inf, 1]]])
def test_a_map_that_says_nothing_has_a_heatmap_of_zeros(values: list[list[float]]) -> None:
    """As the contract has it."""
    kept = record(at(1, 2), raw_map=np.array(values, dtype=np.float32))
    assert not kept.heatmap.any()
    assert np.array_equal(Record.read(kept.to_json()).raw_map, kept.raw_map, equal_nan=True)


def test_a_name_tells_what_a_record_is() -> None:
    """So nothing needs to be opened to list, to count and to delete."""
    kept = record(at(11, 29, 18, 40, 12, 123_456), 285, (Reason("sample", {"weight": 1}), RARE))
    entry = Entry.of(f"{kept.folder}/{kept.name}.json", 77)

    assert kept.name.startswith("20261129T184012.123Z-0123456789abcdef-285-")
    assert entry is not None
    assert (entry.time, entry.id, entry.target, entry.size, entry.model) == (kept.time, kept.id, 285, 77, "m")
    assert entry.reasons == ("sample", "rare.centroid_x")


def test_every_reason_has_a_bit_of_its_own() -> None:
    """And names sort by time."""
    moment = at(5, 6, 7, 8, 9)
    names = [name_record(moment + timedelta(milliseconds=place), "0" * 16, 1, [tag]) for place, tag in enumerate(TAGS)]
    entries = [Entry.of(f"m/2026-05-06/{name}.json", 1) for name in names]

    assert [entry and entry.reasons for entry in entries] == [(tag,) for tag in TAGS]
    assert sorted(names) == names
    assert len(f"{name_record(moment, '0' * 16, 10**6, TAGS)}.json") < 120


@pytest.mark.parametrize(
    "path",
    ["m/2026-11-29/x.json", "m/x.json", "m/2026-11-29/20261329T184012.123Z-0123456789abcdef-1-2.json", "m/2026-11-29/.lock", ""],
)
def test_other_files_are_no_records(path: str) -> None:
    """They are left alone."""
    assert Entry.of(path, 1) is None


def test_an_id_tells_its_request() -> None:
    """Its second half, so that an application's log leads to it; no two are alike."""
    one, two, other = make_id("order-4711"), make_id("order-4711"), make_id("order-4712")
    assert one != two
    assert one[8:] == two[8:] != other[8:]


@pytest.mark.parametrize(
    ("model", "folder"),
    [("cats", "cats"), ("../etc", "__etc"), ("..", "_"), ("a/b c", "a_b_c"), ("", "_"), ("Katze-1.0", "Katze-1.0")],
)
def test_no_models_name_leads_elsewhere(model: str, folder: str) -> None:
    """A folder is one part of a path."""
    assert name_folder(model) == folder
    assert record(at(1, 2), source=replace(SOURCE, model=model)).folder == f"{folder}/2026-01-02"


def test_what_is_damaged_is_said_to_be() -> None:
    """In one line; so is what a later release wrote."""
    whole = record(at(1, 2)).to_json()
    for data in (whole[:-20], b"", b"[]", b"null", whole.replace(b'"shape":[2,2]', b'"shape":[2,3]'), b'{"format":1}'):
        with pytest.raises(EvidenceError, match="cannot be read"):
            Record.read(data)
    with pytest.raises(EvidenceError, match="format 2"):
        Record.read(whole.replace(b'"format":1', b'"format":2'))
