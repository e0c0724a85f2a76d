"""No flood of one kind hides another, no hour's share is gone in its first minutes, and all together stays within its bounds."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tests.support.monitoring.keeping import at, record, settings, write

from camserve.monitoring.evidence import quotas
from camserve.monitoring.evidence.quotas import HOUR, Bounds, Quotas, Reservoir, plan_sample
from camserve.monitoring.evidence.reading import list_entries
from camserve.monitoring.evidence.stores import Folder


def keep(found: Quotas, tag: str, target: int, now: float) -> bool:
    """Keeps one if there is room."""
    fits = found.has_room((tag,), target, now)
    if fits:
        found.count((tag,), target, now)
    return fits


def test_a_flood_is_bounded_in_an_hour_and_spread_over_it() -> None:
    """One of one class each second: half of the reason's share, a quarter of that in each quarter of an hour."""
    found = Quotas(settings(per_reason=40, per_class=20))
    times = [second for second in range(7200) if keep(found, "unseen", 5, float(second))]

    assert len([each for each in times if each < HOUR]) == 20
    for start in range(0, 7200 - 3600, 60):
        assert len([each for each in times if start < each <= start + 3600]) <= 20
    assert Counter(each // 900 for each in times) == dict.fromkeys(range(8), 5)


def test_no_flood_of_one_class_hides_another() -> None:
    """While some flood, a class that had none yet is kept at once; and so is another reason of theirs."""
    found = Quotas(settings(per_reason=40, per_class=20))
    for second in range(3000):
        for target in (1, 2, 3):
            keep(found, "unseen", target, float(second))

    assert keep(found, "unseen", 9, 3000.0)
    assert keep(found, "unsure", 1, 3000.0)
    assert found.has_room(("unseen", "rare.entropy"), 1, 3000.0)
    assert not found.has_room(("unseen",), 1, 3000.0)


def test_a_thousand_classes_are_bounded_too() -> None:
    """Each of them is new, and together they have what a reason has."""
    found = Quotas(settings(per_reason=40, per_class=20))
    assert sum(keep(found, "unseen", target, float(target)) for target in range(3500)) == 40


def test_what_other_workers_kept_counts() -> None:
    """A store tells it, and so does what this worker kept before it was killed."""
    found = Quotas(settings(per_reason=4, per_class=4))
    found.learn([(100.0, ("unseen",), 1)], 110.0)

    assert not found.has_room(("unseen",), 1, 110.0)  # one of four in a quarter of an hour
    assert found.has_room(("unseen",), 1, 100.0 + HOUR)
    assert found.count_samples(0) == 0


def test_every_prediction_has_the_same_chance_to_be_drawn() -> None:
    """Of 20, three: each is drawn in 15 % of 4,000 trials, within five standard deviations."""
    draw, counts = random.Random(3), Counter[int]()
    for _ in range(4000):
        found = Reservoir[int](3, draw)
        for item in range(20):
            found.add(item)
        chosen, others, weight = found.take(3)
        assert (len(set(chosen)), len(others)) == (3, 0)
        assert weight == pytest.approx(20 / 3)
        counts.update(chosen)

    assert all(abs(counts[item] - 600) < 5 * (4000 * 0.15 * 0.85) ** 0.5 for item in range(20))


def test_what_is_not_drawn_yet_joins_what_comes() -> None:
    """Where another worker has drawn enough, this one goes on; what one stands for grows. What is dropped is given back."""
    found = Reservoir[int](2, random.Random(0))
    dropped = [found.add(item) for item in range(10)]
    assert found.take(0) == ([], [], 0.0)
    dropped += [found.add(item) for item in range(10, 20)]
    chosen, others, weight = found.take(1)

    assert weight == 20
    assert sorted([*chosen, *others, *(each for each in dropped if each is not None)]) == list(range(20))
    assert not found


@pytest.mark.parametrize(
    ("sample", "planned"), [(60, (1, 60.0)), (600, (10, 60.0)), (30, (1, 120.0)), (1, (1, 3600.0)), (90, (1, 60.0))]
)
def test_a_sample_is_drawn_now_and_then(sample: int, planned: tuple[int, float]) -> None:
    """So many at a time, every so many seconds: never more in an hour than are asked for."""
    assert plan_sample(sample, 60.0) == planned
    assert planned[0] * HOUR / planned[1] <= sample


def fill(store: Folder, count: int, start: datetime) -> list[str]:
    """Writes so many records, one a minute; returns their names."""
    return [write(store, record(start + timedelta(minutes=place), id=f"{place:016x}")).name for place in range(count)]


def test_the_oldest_go_where_there_are_too_many(tmp_path: Path) -> None:
    """With what lies beside them; a twentieth of room is made, for workers that write meanwhile."""
    store = Folder(tmp_path)
    names = fill(store, 30, at(1, 2, 23, 50))
    store.write(f"m/2026-01-02/{names[0]}.mark-1.json", b"mark")
    bounds = Bounds(store, settings(max_records=20, max_days=10_000), "m")
    bounds.look(at(1, 3).timestamp())

    assert [entry.name for entry in list_entries(store)] == names[-19:]
    assert [name for day in store.list_folders("m") for name, _ in store.list_files(f"m/{day}") if "mark" in name] == []
    assert bounds.count == 19


def test_bytes_are_bounded_with_what_lies_beside(tmp_path: Path) -> None:
    """Also while it is written: never is there more than there may be."""
    store = Folder(tmp_path)
    size = write(store, record(at(1, 1), id="f" * 16)).size
    store.write(f"m/2026-01-01/{list_entries(store)[0].name}.mark-1.json", b"x" * size)
    bounds = Bounds(store, settings(max_bytes=10 * size, max_days=10_000), "m")
    bounds.look(at(1, 2).timestamp())
    assert bounds.size == 2 * size
    for place in range(40):
        kept = record(at(1, 2) + timedelta(minutes=place), id=f"{place:016x}")
        assert bounds.make_room(size)
        bounds.add(write(store, kept))
        taken = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
        assert bounds.size == taken <= 10 * size

    assert [entry.id for entry in list_entries(store)][-1] == f"{39:016x}"
    assert not bounds.make_room(11 * size)


def test_old_ones_go_with_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody need ask for anything; folders that are empty go too."""
    store = Folder(tmp_path)
    fill(store, 5, at(1, 1))
    fill(store, 5, at(1, 9))
    bounds = Bounds(store, settings(max_days=3), "m")
    bounds.look(at(1, 11).timestamp())

    assert [entry.time.day for entry in list_entries(store)] == [9] * 5
    assert store.list_folders("m") == ["2026-01-09"]


def test_a_large_store_is_not_looked_at_before_each_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a minute; a small one at every writing, so that several workers keep to one bound."""
    monkeypatch.setattr(quotas, "FEW", 3)
    store = Folder(tmp_path)
    now = datetime.now(timezone.utc)
    fill(store, 2, now - timedelta(minutes=10))
    bounds = Bounds(store, settings(), "m")
    bounds.look(now.timestamp())
    assert bounds.wants_look(now.timestamp())
    fill(store, 4, now - timedelta(minutes=10))
    bounds.look(now.timestamp())
    assert not bounds.wants_look(now.timestamp())
    assert bounds.wants_look(now.timestamp() + 61)
