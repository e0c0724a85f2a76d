"""What is kept of what comes; and that a slow, full, dead or shared store costs evidence, counted, and nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.monitoring.keeping import SIZE, Broken, Kept, came, keeping, picture, silent
from tests.support.monitoring.monitors import look, reference
from tests.support.processes.waiting import HANG, wait_until

from camserve.core.messages import Encoded
from camserve.monitoring.evidence import keeper, writing
from camserve.monitoring.evidence.reading import find_entries, list_entries, read_records
from camserve.monitoring.evidence.records import Record
from camserve.monitoring.evidence.stores import Folder
from camserve.monitoring.reference import Reference


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """A monitor whose folder can be made to fail."""
    with keeping(tmp_path / "kept", per_reason=1000, per_class=1000) as made:
        made.store = made.keeper._writer._store = made.keeper._writer._bounds._store = Broken(tmp_path / "kept")
        yield made


def draw(found: Kept) -> None:
    """Lets the worker draw its sample now."""
    writer = found.keeper._writer
    with writer._turns:
        writer._due = 0.0
        writer._turns.notify()


def records(found: Kept) -> list[Record]:
    """What was kept."""
    return list(read_records(found.store, found.entries()))


def test_an_unusual_prediction_is_kept_with_all_that_was_measured(tmp_path: Path) -> None:
    """And what is usual is not. Times are when it came."""
    with keeping(tmp_path, reference()) as found:
        usual = look(((0, 1), (2, 3)), confidence=0.5)
        found.take(came(usual, "usual"), came(look(((0, 1), (2, 8)), 77, confidence=0.4), "order-1", at=1_700_000_000.25))
        (record,) = [each for each in records(found) if each.request_id == "order-1"]

    assert record.time.timestamp() == 1_700_000_000.25
    assert record.raw_map.tolist() == [[0, 1], [2, 8]]
    assert record.statistics["centroid_x"] == pytest.approx((2 * 0.25 + 9 * 0.75) / 11)
    assert record.statistics["confidence"] == 0.4
    assert {each.kind for each in record.reasons} >= {"unseen"}
    assert (record.group, record.target, record.classes[0].label) == (9, 77, "class 77")
    assert (record.image, record.view) == (SIZE, (20.0, 0.0, 140.0, 120.0))
    assert (record.picture.kind, record.picture.size) == ("thumbnail", SIZE)
    assert record.source.reference == reference().digest
    assert find_entries(found.store, "usual") == []


def test_a_store_holds_the_reference_of_its_records(tmp_path: Path) -> None:
    """So whoever looks at it needs nothing else; it is written once, and is no record."""
    with keeping(tmp_path, reference()) as found:
        found.take(silent(request_id="a"))
        wait_until(lambda: len(list_entries(found.store)) == 1)
        found.take(silent(1))
        assert len(found.entries()) == 2

    ((name, _),) = found.store.list_files("m")
    assert name == f"reference-{reference().digest}.json"
    assert Reference.from_json(found.store.read(f"m/{name}").decode()).digest == reference().digest


def test_a_sample_is_drawn_of_what_is_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stands for all that came; one that is unusual too has one record."""
    monkeypatch.setattr(writing, "FIRST_SAMPLE", HANG)
    with keeping(tmp_path, sample=60) as found:
        found.take(*(came(look(), str(place)) for place in range(12)))
        draw(found)
        wait_until(lambda: len(list_entries(found.store)) == 1)
    (record,) = records(found)
    assert [(each.kind, each.about) for each in record.reasons] == [("sample", {"weight": 12.0})]

    with keeping(tmp_path / "both", sample=60) as found:
        found.take(silent(request_id="x"))
        draw(found)
        wait_until(lambda: any("sample" in each.reasons for each in list_entries(found.store)))
    (entry,) = found.entries()
    assert entry.reasons == ("sample", "degenerate")


def test_several_workers_share_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds enough drawn lets it be, and draws of more the next time."""
    monkeypatch.setattr(writing, "FIRST_SAMPLE", 0.2)
    with keeping(tmp_path, sample=60) as one:
        one.take(came(look()))
        wait_until(lambda: len(list_entries(one.store)) == 1)
        with keeping(tmp_path, sample=60) as two:
            two.take(came(look()))
            wait_until(lambda: two.keeper._writer._due > time.time() + 10)
            assert len(two.entries()) == 1
            assert len(two.keeper._writer._reservoir) == 1


def test_nothing_waits_for_a_store_that_hangs(kept: Kept) -> None:
    """The queue is bounded, what does not fit is counted, and the end of a worker does not wait for ever either."""
    kept.patience = 0.2
    kept.store.free.clear()
    for place in range(40):
        kept.take(*(silent(place * 10 + each) for each in range(10)))
    assert len(kept.keeper._writer._queue) == writing.QUEUED
    told = kept.told("dropped", "slow")
    assert kept.store.tried == 1  # and that hangs still
    assert kept.store.done == 0
    kept.store.free.set()

    assert told > 0
    assert told + kept.told("dropped", "quota") >= 400 - writing.QUEUED  # one batch is with the store
    assert kept.told("kept", "degenerate") == 0


def test_a_full_disk_costs_evidence_until_there_is_room(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, counted for each, left in peace for a while, and tried again."""
    kept.store.fault = OSError(errno.ENOSPC, "No space left on device")
    kept.take(silent(1))
    wait_until(lambda: kept.keeper._writer._pause > 0)
    kept.take(silent(2))
    assert kept.store.tried == 1
    kept.store.fault = None
    kept.keeper._writer._paused_until = 0.0
    kept.take(silent(3))
    wait_until(lambda: len(list_entries(kept.store)) == 1)

    assert kept.told("dropped", "failed") == 2
    assert kept.told("kept", "degenerate") == 1
    assert kept.output.totals()["camserve_maps_total",] == 3
    assert [record.message for record in caplog.records if "No space" in record.message]


def test_pauses_grow_where_a_store_stays_dead(kept: Kept) -> None:
    """So that a dead object store is not asked all the time."""
    kept.store.fault = OSError("unreachable")
    pauses: list[float] = []
    for _ in range(3):
        kept.keeper._writer._paused_until = 0.0
        kept.take(silent(len(pauses)))
        wait_until(lambda: kept.store.tried == len(pauses) + 1 and kept.keeper._writer._paused_until > 0)
        pauses.append(kept.keeper._writer._pause)
    assert pauses == [1.0, 2.0, 4.0]


def test_pictures_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, a prediction is measured and not kept; what is decided lets go of its picture."""
    monkeypatch.setattr(keeper, "HELD", 2 * len(picture()))
    with keeping(tmp_path) as found:
        found.take(*(silent(place) for place in range(5)))
        wait_until(lambda: found.keeper._held == 0)
        found.take(silent(9))
        found.take(came(look()))
        assert len(found.entries()) == 3

    assert found.told("dropped", "memory") == 3
    assert found.keeper._held == 0
    assert found.output.totals()["camserve_maps_total",] == 7


def test_what_cannot_be_measured_is_let_go_of(tmp_path: Path) -> None:
    """Else its bytes would count for ever."""
    with keeping(tmp_path) as found:
        broken = silent()
        object.__setattr__(broken, "maps", (None,))
        found.monitor.observe(broken)
        with pytest.raises(AttributeError):
            found.monitor._digest()
        assert found.keeper._held == 0


def test_what_cannot_be_judged_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured all the same."""
    with keeping(tmp_path) as found:
        monkeypatch.setattr(found.keeper._judge, "judge", lambda _: 1 / 0)
        found.monitor.observe(silent())
        with pytest.raises(ZeroDivisionError):
            found.monitor._digest()
        assert found.keeper._held == 0
    assert found.output.totals()["camserve_maps_total",] == 1


def test_keeping_takes_no_more_than_its_share_of_time(tmp_path: Path) -> None:
    """Of one core; what it begins with allows for the first ones."""
    large = Encoded(picture(4000, 3000, "PNG"))
    with keeping(tmp_path, share=0.01, per_reason=1000, per_class=1000) as found:
        began, each = time.monotonic(), 0.0
        while found.keeper._writer._budget.allows():
            assert time.monotonic() - began < HANG
            each += 1
            found.take(silent(int(each), image=large))
            wait_until(lambda: not found.keeper._writer._queue)
        found.take(silent(0, image=large))

    assert found.told("dropped", "budget") >= 1
    assert found.told("kept", "degenerate") >= 2


def test_a_record_that_cannot_be_made_is_counted_and_no_other_suffers(tmp_path: Path) -> None:
    """A broken file is no reason to stop: a handler's own step may read what ours does not."""
    with keeping(tmp_path) as found:
        found.take(silent(1, image=Encoded(b"\xff\xd8\xff broken")), silent(2))
        kept = {each.target: each for each in records(found)}

    assert (kept[1].picture.kind, kept[1].picture.why) == ("none", "unreadable")
    assert kept[2].picture.kind == "thumbnail"


WORKER = """
import sys
from pathlib import Path
from tests.support.monitoring.keeping import keeping, silent
from tests.support.processes.waiting import wait_until
with keeping(Path(sys.argv[1]), per_reason=40, per_class=20, max_records=int(sys.argv[2])) as found:
    for place in range(200):
        found.take(silent(place % 3))
    wait_until(lambda: not found.keeper._writer._queue)
"""


def test_workers_of_one_folder_keep_to_one_quota_and_one_bound(tmp_path: Path) -> None:
    """Processes of their own, at the same time: together no more than one alone, and never more than there may be."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, "-c", WORKER, str(tmp_path), "10"] for _ in range(3)]
    most = 0
    store = Folder(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(subprocess.run, each, env=environment, capture_output=True, timeout=2 * HANG) for each in commands]
        while not all(each.done() for each in running):
            most = max(most, len(list_entries(store)))
            time.sleep(0.01)

    assert [each.result().returncode for each in running] == [0, 0, 0], [each.result().stderr for each in running]
    assert 1 <= most <= 10
    assert len(list_entries(store)) <= 10  # a quarter of an hour's share of one reason


def test_a_folder_is_one_workers_at_a_time(tmp_path: Path) -> None:
    """Else two would each find room for the last one."""
    with Folder(tmp_path).lock(), keeping(tmp_path) as found:
        found.patience = 0.2
        found.take(silent())
        wait_until(lambda: not found.keeper._writer._queue)
        found.close()
        assert list_entries(found.store) == []
        assert found.keeper._writer._thread.is_alive()
    wait_until(lambda: len(list_entries(found.store)) == 1)


def test_a_closed_writer_has_no_thread(tmp_path: Path) -> None:
    """Also where it never had anything to write."""
    with keeping(tmp_path) as found:
        found.take(silent())
    assert not [each for each in threading.enumerate() if each.name == "camserve evidence"]
