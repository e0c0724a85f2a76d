"""The monitor: exact counts, what is told at the start, at each interval and at the end, and what is not to be told."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tests.support.monitoring.monitors import Output, look, monitor, reference
from tests.support.processes.waiting import HANG, wait_until

from camserve.core.config.watching import Monitoring
from camserve.explain.observer import Observation, Observer
from camserve.monitoring import measure as measuring
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.measure import measure
from camserve.monitoring.monitor import MAX_QUEUED_TIMINGS, Monitor
from camserve.monitoring.reference import BINS, CLASS, UNSEEN, Reference
from camserve.monitoring.statistics import INPUT_STATISTICS, SCORE_STATISTICS, STATISTICS, Scale


def test_every_series_is_there_at_zero_before_traffic() -> None:
    """Prometheus sees no increase from nothing to one."""
    output = Output()
    started = monitor(output, reference())
    started.start()
    found = output.totals()
    started.close()

    bins = [key for key in found if key[0] == "camserve_map_bin_total"]
    assert len(bins) == (len(STATISTICS) + 1) * BINS
    assert all(found[key] == 0 for key in found if key[0].endswith(("_total", "_bucket", "_sum", "_count")))
    assert {key[1:] for key in found if key[0] == "camserve_requests_total"} == {
        (mode, outcome) for mode in ("predict", "explain", "page") for outcome in ("ok", "client_error", "server_error")
    }


def test_without_a_reference_no_bins_are_told() -> None:
    """Bins without edges that mean something would be read as something."""
    output = Output()
    observer = monitor(output)
    observer.observe(look())
    observer.flush()

    assert not [key for key in output.totals() if "bin" in key[0] or "reference" in key[0]]
    assert output.totals()["camserve_maps_total",] == 1
    assert observer.describe()["reference"] is None


def binned(output: Output, found: Reference) -> dict[tuple[str, ...], float]:
    """Pictures by statistic and bin, where there are any; every series names the reference."""
    told = {key[1:]: value for key, value in output.totals().items() if key[0] == "camserve_map_bin_total" and value}
    assert {key[2] for key in told} == {found.digest}
    return {key[:2]: value for key, value in told.items()}


def test_pictures_fall_into_the_bins_of_the_reference() -> None:
    """One count a statistic and picture; degenerate maps have no map statistics, but a confidence; a class has a group."""
    output = Output()
    observer = monitor(output, reference())
    for each in (look(confidence=0.95, target=1), look(confidence=0.95), look(((0, 0), (0, 0)), confidence=0.31)):
        observer.observe(each)
    observer.flush()

    assert {
        key: value
        for key, value in binned(output, reference()).items()
        if key[0] in ("area", "centroid_x", "confidence", "class")
    } == {
        ("area", "5"): 2,  # two of four cells are at least 1.5
        ("centroid_x", "5"): 2,  # (2 * 0.25 + 4 * 0.75) / 6
        ("confidence", "9"): 2,
        ("confidence", "3"): 1,
        ("class", "1"): 1,
        ("class", "0"): 2,
    }
    assert output.totals()["camserve_degenerate_maps_total", "zero"] == 1
    assert output.totals()["camserve_maps_total",] == 3


def test_maps_of_classes_that_the_reference_never_saw_are_not_binned() -> None:
    """Nobody knows where they are to be looked at; that they came, how sure the model is, and the pictures are told."""
    output = Output()
    observer = monitor(output, reference())
    observer.observe(look(target=77))
    observer.flush()
    found = binned(output, reference())

    assert found["class", str(UNSEEN)] == 1
    assert {name for name, _ in found} == {*SCORE_STATISTICS, *INPUT_STATISTICS, CLASS}
    assert output.totals()["camserve_maps_total",] == 1


def test_the_reference_is_told_as_shares_overall_and_by_group() -> None:
    """Of known classes' maps; of a group's pictures, not of its maps; group 9 has no maps, and its pictures are as all are."""
    output = Output()
    monitor(output, reference()).start()
    told = output.totals()
    assert {key[-1] for key in told if "reference" in key[0] or "bin" in key[0]} == {reference().digest}
    found = {key[:-1]: value for key, value in told.items() if len(key) > 1}

    assert found["camserve_map_bin_reference_ratio", "area", "0"] == pytest.approx(110 / 380)
    assert found["camserve_map_bin_reference_ratio", "class", "0"] == pytest.approx(300 / 420)
    assert found["camserve_map_bin_reference_ratio", "class", "9"] == pytest.approx(20 / 420)
    assert found["camserve_map_bin_group_reference_ratio", "area", "0", "1"] == pytest.approx(0.8)
    assert found["camserve_map_bin_group_reference_ratio", "area", "4", "0"] == pytest.approx(0.1)
    assert found["camserve_map_bin_group_reference_ratio", "width", "9", "9"] == pytest.approx(50 / 420)
    groups = {key[1:4:2] for key in found if key[0] == "camserve_map_bin_group_reference_ratio"}
    assert {stat for stat, group in groups if group == "9"} == {*SCORE_STATISTICS, *INPUT_STATISTICS}
    assert [found["camserve_group_reference_images", group] for group in "019"] == [300, 100, 420]
    assert [found["camserve_map_reference_images", name] for name in ("area", "width", "class")] == [380, 420, 420]


def test_what_came_last_is_told_when_traffic_stops() -> None:
    """A thread of its own tells what has changed once an interval, without another request."""
    output, told = Output(), threading.Event()

    def write(block: bytes) -> None:
        output.blocks.append(block)
        if b"_maps_total" in block:
            told.set()

    observer = Monitor(Monitoring(1.0, 0.05), Exporter("m", "1", write), None)
    observer.start()
    told.clear()
    observer.observe(look())

    assert told.wait(HANG)
    observer.close()
    assert output.totals()["camserve_maps_total",] == 1


def test_waiting_pictures_are_measured_in_chunks() -> None:
    """An interval's pictures are not all kept in memory until it ends."""
    output = Output()
    observer = monitor(output, interval=3600)
    observer.start()
    for _ in range(200):
        observer.observe(look())
    wait_until(lambda: len(observer._observations) < 64)
    observer.close()
    assert output.totals()["camserve_maps_total",] == 200


def test_times_of_stages_do_not_wait_for_pictures() -> None:
    """Where hardly any picture is measured, nothing else would wake the thread before the interval ends."""
    observer = monitor(Output(), rate=0, interval=3600)
    observer.start()
    for _ in range(MAX_QUEUED_TIMINGS):
        with observer.stage("batch"):
            pass
    observer.replied("predict", 200, 1)
    wait_until(lambda: not observer._times)
    observer.close()


def test_counts_stay_exact_while_threads_add_and_flush() -> None:
    """Decoding threads add while the monitor's own thread flushes."""
    output = Output()
    observer = Monitor(Monitoring(1.0, 0.001), Exporter("m", "1", output.blocks.append), None)
    observer.start()

    def work() -> None:
        for _ in range(300):
            with observer.stage("decode"):
                pass
            observer.replied("predict", 200, 10)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.close()

    found = output.totals()
    assert found["camserve_requests_total", "predict", "ok"] == 1200
    assert found["camserve_response_bytes_total", "predict"] == 12000
    assert found["camserve_stage_seconds_count", "decode"] == 1200


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (400, "client_error"), (413, "client_error"), (500, "server_error"), (507, "server_error")],
)
def test_outcomes_tell_whose_fault_it_was(status: int, outcome: str) -> None:
    """So that a bad client does not look like a bad server."""
    output = Output()
    observer = monitor(output)
    observer.replied("explain", status, 1)
    observer.flush()

    assert output.totals()["camserve_requests_total", "explain", outcome] == 1


def test_the_rate_is_the_share_of_pictures_that_are_measured() -> None:
    """Each picture is drawn by itself; 0 measures none, 1 all."""
    shares = {rate: sum(monitor(Output(), rate=rate).samples() for _ in range(2000)) / 2000 for rate in (0.0, 0.3, 1.0)}

    assert shares[0.0] == 0
    assert shares[1.0] == 1
    assert shares[0.3] == pytest.approx(0.3, abs=0.06)


def test_a_stage_that_fails_is_not_timed() -> None:
    """A refused picture says nothing about how long decoding takes."""
    output = Output()
    observer: Observer = monitor(output)
    with pytest.raises(ValueError, match="bad"), observer.stage("decode"):
        raise ValueError("bad")
    observer.flush()  # type: ignore[attr-defined]

    assert output.totals()["camserve_stage_seconds_count", "decode"] == 0


def test_a_monitor_that_starts_forgets_the_self_test_and_tells_the_last_when_the_worker_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its stages are no requests'; what came after the last interval is not lost."""
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr("camserve.monitoring.monitor.atexit.register", ends.append)
    output = Output()
    observer = monitor(output)
    with observer.stage("forward"):
        pass
    observer.start()
    with observer.stage("decode"):
        pass
    (end,) = ends
    end()

    assert output.totals()["camserve_stage_seconds_count", "forward"] == 0
    assert output.totals()["camserve_stage_seconds_count", "decode"] == 1


def test_a_fault_in_one_interval_is_logged_and_the_next_is_told(caplog: pytest.LogCaptureFixture, broken_once: None) -> None:
    """Monitoring must not end with the first surprise, nor reach a request."""
    output = Output()
    observer = Monitor(Monitoring(1.0, 0.02), Exporter("m", "1", output.blocks.append), None)
    observer.observe(look())
    observer.start()
    wait_until(lambda: "monitoring failed" in caplog.text)
    observer.observe(look())
    observer.close()

    assert output.totals()["camserve_maps_total",] == 1
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 1


@pytest.fixture
def broken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement fails."""
    calls = []

    def fail_first(several: list[Observation], scale: Scale | None) -> measuring.Measurements:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a surprise")
        return measure(several, scale)

    monkeypatch.setattr("camserve.monitoring.monitor.measure", fail_first)


@pytest.mark.parametrize(("share", "pictures", "most"), [(None, 1, 0.055), (None, 45, 0.011), (0.2, 1, 0.2), (0.2, 45, 0.2)])
def test_the_budget_of_the_settings(share: float | None, pictures: int, most: float) -> None:
    """What is given counts for batches of every size; without it a lone picture's share is larger."""
    budget = Monitor(Monitoring(budget=share), Exporter("m", "1", len), None).budget
    budget.add(pictures, work=1.0, spent=0.99 * most)
    assert budget.allows()
    budget.add(pictures, work=0.0, spent=0.02 * most)
    assert not budget.allows()


def test_a_budget_of_one_is_no_limit() -> None:
    """Every prediction is measured, and each picture's runner-up too."""
    budget = Monitor(Monitoring(budget=1), Exporter("m", "1", len), None).budget
    budget.add(1, work=0.0, spent=1e6)
    assert budget.allows()
    assert not budget.limited
