"""Monitoring: statistics of maps by hand, exact counts out of a worker, and what is not to be told."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.support import build
from tests.support.processes.worker import load_monitored

import camserve
from camserve.core.config import Monitoring
from camserve.core.messages import Encoded, Item
from camserve.explain.degenerate import degenerate
from camserve.explain.explainer import Explainer
from camserve.explain.observer import NullObserver, Observation, Observer, sample_rows
from camserve.explain.sampling import SAVED, Budget
from camserve.monitoring import measure as measuring
from camserve.monitoring import metrics
from camserve.monitoring.exporter import Exporter, StageTimes, number, plain
from camserve.monitoring.measure import measure
from camserve.monitoring.metrics import METRICS, Metric
from camserve.monitoring.monitor import MOST_TIMES, Monitor
from camserve.monitoring.reference import BINS, CLASS, UNSEEN, Provenance, Reference
from camserve.monitoring.statistics import INPUT_STATISTICS, SCORE_STATISTICS, STATISTICS, Scale, input_statistics, map_statistics
from camserve.pipeline.prepare import Pictures, Prepared
from camserve.tools.archive.archive import Row, ask

METRICS_YAML = Path(camserve.__file__).with_name("metrics.yaml")
LINE = re.compile(r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:(\w+)\|#hostname:([^,]+),(\d+)")
"""TorchServe's own expression, and what its parser expects of the rest."""

MADE = Provenance("features", "gradcam++", "sha256:0")


class Output:
    """What a worker would have written, block by block."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def totals(self) -> dict[tuple[str, ...], float]:
        """Each series' value as the server would show it: (name, labels...) without the model's."""
        found: dict[tuple[str, ...], float] = {}
        for block in self.blocks:
            for line in filter(None, block.decode().split("\n")):
                match = LINE.fullmatch(line)
                assert match, line
                name, _, value, dimensions, kind, _, _ = match.groups()
                key = (name, *(pair.split(":")[1] for pair in dimensions.split(",")[:-2]))
                found[key] = found.get(key, 0) + float(value) if kind == "COUNTER" else float(value)
        return found


def look(
    values: object = ((0, 1), (2, 3)), target: int = 0, rival: object = ((1, 1), (1, 1)), confidence: float = 0.5, side: int = 32
) -> Observation:
    """A picture with these maps."""
    maps = tuple(np.array(each, dtype=np.float32) for each in (values, rival) if each is not None)
    rows = sample_rows(np.random.default_rng(0).normal(size=(3, side, side)).astype(np.float32))
    return Observation(maps, rows, ((target, confidence), (target + 1, 0.2)), (side, side))


def reference() -> Reference:
    """A reference whose bins are the tenths of [0, 1]: 300 pictures of class 0, 100 of class 1, and 20 of unlike ones.

    Classes 0 and 1 are groups 0 and 1, whose maps lie in all bins and in bin 0; of class 1 a fifth have no area.
    """
    edges = {name: tuple(place / BINS for place in range(1, BINS)) for name in STATISTICS}
    tables = {name: np.zeros((BINS, BINS), dtype=np.int64) for name in STATISTICS}
    for name, table in tables.items():
        table[0, :] = 30
        table[1, 0] = 80 if name == "area" else 100
        table[UNSEEN, 9] = 20
    return Reference(MADE, 420, edges, {0: 0, 1: 1}, tables, {})


def monitor(output: Output, found: Reference | None = None, rate: float = 1.0, interval: float = 3600) -> Monitor:
    """A monitor that writes into `output`."""
    return Monitor(Monitoring(rate, interval), Exporter("m", "1.0", output.blocks.append), Scale((0,) * 3, (1,) * 3), found)


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


def test_degenerate_maps_are_told_by_reason() -> None:
    """The contract's warnings: zero, constant within rounding, not finite."""
    maps = np.ones((5, 2, 2), dtype=np.float32)
    maps[0] = 0
    maps[2, 0, 0] = np.nan
    maps[3, 0, 0] = np.inf
    maps[4, 0, 0] = 1.00001

    assert degenerate(maps) == ["zero", "constant", "not_finite", "not_finite", ""]


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


def test_rows_are_a_copy_of_a_few_rows_of_the_input() -> None:
    """A kept view would hold the whole tensor in memory."""
    picture = np.arange(3 * 224 * 224, dtype=np.float32).reshape(3, 224, 224)
    rows = sample_rows(picture)

    assert rows.shape == (3, 16, 224)
    assert rows.base is None
    assert np.array_equal(rows[:, 1], picture[:, 14])


def test_pictures_of_different_sizes_are_measured_together_as_alone() -> None:
    """A batch may mix sizes; each picture's statistics stay in its place."""
    wide = look(np.arange(15).reshape(3, 5), 1, np.ones((3, 5)), side=48)
    several = [look(), wide, look(((0, 0), (0, 0)), 2), look(rival=None)]
    together = measure(several, None)

    assert together.targets == [0, 1, 2, 0]
    assert together.reasons == ["", "", "zero", ""]
    for place, each in enumerate(several):
        alone = measure([each], None)
        for name in STATISTICS:
            assert together.values[name][place] == pytest.approx(alone.values[name][0], nan_ok=True), name
    assert np.isnan(together.values["entropy"][2])
    assert not np.isnan(together.values["confidence"]).any()
    assert np.isnan(together.values["overlap"][3])


def test_metrics_yaml_declares_every_metric_with_its_labels_in_order() -> None:
    """TorchServe drops what is not declared without a word, and takes labels by position."""
    declared = yaml.safe_load(METRICS_YAML.read_text())["model_metrics"]
    found = {
        (each["name"], kind.upper(), each["unit"], tuple(each["dimensions"]))
        for kind, several in declared.items()
        for each in several
    }

    assert {(m.name, m.kind, m.unit, (*m.labels, "model_name", "model_version")) for m in METRICS} <= found
    assert {name for name, *_ in found} == {m.name for m in METRICS} | {"HandlerTime", "PredictionTime"}


def test_metrics_yaml_keeps_all_of_torchserves_own_metrics() -> None:
    """Only one file is read: what it leaves out is gone."""
    import ts

    stock = yaml.safe_load((Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text())
    ours = yaml.safe_load(METRICS_YAML.read_text())

    for section in ("ts_metrics", "model_metrics"):
        for kind, several in stock[section].items():
            for each in several:
                assert each in ours[section][kind], each["name"]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    """The prefix, a base unit, `_total` for counters, and labels that are closed sets."""
    assert metric.name.startswith("camserve_")
    assert not re.search(r"_(ms|milliseconds|percent|kb|mb)(_|$)", metric.name)
    assert (metric.kind == "COUNTER") == metric.name.endswith(("_total", "_bucket", "_sum", "_count"))
    assert set(metric.labels) <= {"mode", "outcome", "reason", "stage", "le", "stat", "bin", "class_group", "reference"}


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (0, "0"), (1e-7, "0.0000001"), (1e16, "10000000000000000"), (0.25, "0.25"), (0.0, "0")]
)
def test_numbers_are_written_as_the_server_can_read_them(value: float, text: str) -> None:
    """Its expression knows no `+`, `nan` or `inf`."""
    assert number(value) == text
    assert re.fullmatch(r"[0-9\-,.e]+", number(value))


@pytest.mark.parametrize(
    ("given", "label"), [("tabby, tabby cat", "tabby__tabby_cat"), ("a:b|c", "a_b_c"), ("", "_"), ("Ä\n", "__")]
)
def test_labels_cannot_break_a_metric_line(given: str, label: str) -> None:
    """Commas, colons, bars and line ends would lose the sample, or a label."""
    assert plain(given) == label


def test_blocks_fit_a_pipe_and_begin_and_end_a_line() -> None:
    """A write of at most 4,096 bytes is whole; the line ends keep it apart from half a line that a model has printed."""
    output = Output()
    exporter = Exporter("m" * 100, "1.0", output.blocks.append)
    for bin_ in range(500):
        exporter.add(metrics.MAP_BIN, ("entropy", str(bin_), "r"), bin_)
    exporter.flush()

    assert len(output.blocks) > 10
    assert all(len(block) <= 4096 and block[:1] == block[-1:] == b"\n" for block in output.blocks)
    assert output.totals() == {("camserve_map_bin_total", "entropy", str(bin_), "r"): bin_ for bin_ in range(500)}
    exporter.flush()
    assert sum(output.totals().values()) == sum(range(500))


def test_counts_are_exact_beside_a_model_that_prints() -> None:
    """Other threads print half lines, and text and line end apart, into the same pipe, as Python's print does."""
    reader, writer = os.pipe()
    received = bytearray()

    def read() -> None:
        while part := os.read(reader, 65536):
            received.extend(part)

    drain = threading.Thread(target=read)
    drain.start()
    exporter = Exporter("m", "1", lambda block: os.write(writer, block))
    stop = threading.Event()

    def chatter() -> None:
        with io.TextIOWrapper(io.FileIO(writer, "w", closefd=False), write_through=True) as stdout:
            while not stop.is_set():
                print("epoch 1", end="", file=stdout)
                print("loss", 0.5, file=stdout)

    noise = [threading.Thread(target=chatter) for _ in range(2)]
    for thread in noise:
        thread.start()
    for count in range(300):
        exporter.add(metrics.REQUESTS, ("predict", "ok"))
        exporter.add(metrics.MAP_BIN, ("area", str(count % 10), "r"))
        exporter.flush()
    stop.set()
    for thread in noise:
        thread.join()
    os.close(writer)
    drain.join()
    os.close(reader)

    lines = [match for line in received.decode().split("\n") if (match := LINE.fullmatch(line))]
    assert Counter(match[1] for match in lines) == {"camserve_requests_total": 300, "camserve_map_bin_total": 300}


def test_stage_times_are_cumulative_buckets() -> None:
    """As Prometheus's histograms: each bucket holds all that took no longer than its edge; the edge itself belongs to it."""
    output = Output()
    exporter = Exporter("m", "1", output.blocks.append)
    StageTimes(exporter).add([("forward", 0.001), ("forward", 0.03), ("forward", 99.0), ("decode", 0.00005)])
    exporter.flush()
    found = output.totals()

    buckets = {key[2]: value for key, value in found.items() if key[:2] == ("camserve_stage_seconds_bucket", "forward")}
    assert [buckets[edge] for edge in ("0.0005", "0.001", "0.025", "0.05", "10", "+Inf")] == [0, 1, 1, 2, 2, 3]
    assert found["camserve_stage_seconds_count", "forward"] == 3
    assert found["camserve_stage_seconds_sum", "forward"] == pytest.approx(99.031)
    assert found["camserve_stage_seconds_bucket", "decode", "0.0001"] == 1
    assert found["camserve_stage_seconds_count", "render"] == 0


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
    assert observer.described()["reference"] is None


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

    assert told.wait(10)
    observer.close()
    assert output.totals()["camserve_maps_total",] == 1


def test_waiting_pictures_are_measured_in_chunks() -> None:
    """An interval's pictures are not all kept in memory until it ends."""
    output = Output()
    observer = monitor(output, interval=3600)
    observer.start()
    for _ in range(200):
        observer.observe(look())
    for _ in range(1000):
        if len(observer._looks) < 64:
            break
        threading.Event().wait(0.01)

    assert len(observer._looks) < 64
    observer.close()
    assert output.totals()["camserve_maps_total",] == 200


def test_times_of_stages_do_not_wait_for_pictures() -> None:
    """Where hardly any picture is measured, nothing else would wake the thread before the interval ends."""
    observer = monitor(Output(), rate=0, interval=3600)
    observer.start()
    for _ in range(MOST_TIMES):
        with observer.stage("batch"):
            pass
    observer.replied("predict", 200, 1)
    for _ in range(1000):
        if not observer._times:
            break
        threading.Event().wait(0.01)

    assert not observer._times
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
    for _ in range(500):
        if "monitoring failed" in caplog.text:
            break
        threading.Event().wait(0.01)
    observer.observe(look())
    observer.close()

    assert "monitoring failed" in caplog.text
    assert output.totals()["camserve_maps_total",] == 1
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 1


@pytest.fixture
def broken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement fails."""
    calls = []

    def fail_first(several: list[Observation], scale: Scale | None) -> measuring.Measured:
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


def test_a_budget_allows_what_has_taken_no_more_than_its_share() -> None:
    """Of all the time so far, and of a batch of many less than of a lone picture; without a share, always."""
    budget = Budget(lambda pictures: 0.1 / pictures)
    assert budget.allows()
    budget.add(1, work=1.0, spent=0.5)
    assert not budget.allows()
    budget.add(2, work=4.0, spent=0.0)
    assert not budget.allows()
    budget.add(1, work=2.0, spent=0.0)
    assert budget.allows()
    unlimited = Budget()
    unlimited.add(1, work=0.0, spent=9.0)
    assert unlimited.allows()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small model in a monitored worker, whose observer collects what it sees."""
    return load_monitored(build.archive(tmp_path_factory.mktemp("archive") / "watched"))


class Seeing(NullObserver):
    """A observer that keeps all."""

    def __init__(self) -> None:
        self.looks: list[Observation] = []

    def samples(self) -> bool:
        """Every picture."""
        return True

    def observe(self, look: Observation) -> None:
        """Keeps it."""
        self.looks.append(look)


def asked(service: Any, observer: Observer, rows: list[Row]) -> list[Any]:
    """The answers to a batch, with this observer."""
    service._entry_point.__self__.pipeline.observer = observer
    answers = ask(service, rows)
    assert {answer.status for answer in answers} == {200}
    return [json.loads(answer.body) for answer in answers]


def test_what_is_measured_is_what_an_explanation_would_show(service: Any) -> None:
    """For predictions, for explanations, and for explanations of another class: always the most probable class's raw map."""
    observer = Seeing()
    picture = {"body": build.encoded(build.noise())}
    other = {"x-explain-target": "[2, 1]"}
    plain, explained, another = asked(service, observer, [Row(picture), Row(picture, {}, True), Row(picture, other, True)])
    (explanation,) = explained["explanations"]
    heatmap, (low, high) = np.array(explanation["heatmap"], dtype=np.float32), explanation["range"]

    assert [each["target"] for each in another["explanations"]] == [2, 1]
    assert len(observer.looks) == 3
    for seen in observer.looks:
        assert np.allclose(seen.maps[0], heatmap * (high - low) + low, rtol=1e-5, atol=1e-7)
        assert seen.scores[0] == pytest.approx((explained["classes"][0]["index"], explained["classes"][0]["probability"]))
        assert seen.size == (80, 64)
        assert len(seen.maps) == 2
    assert max(plain.values()) == pytest.approx(observer.looks[0].scores[0][1])


def test_being_watched_changes_no_answer(service: Any) -> None:
    """Mixed batches, with and without a observer."""
    rows = [
        Row({"body": build.encoded(build.noise(seed=seed))}, {"x-explain-top-k": "3"} if seed == 2 else {}, seed % 2 == 0)
        for seed in range(5)
    ]

    assert asked(service, Seeing(), rows) == asked(service, NullObserver(), rows)


def test_a_prediction_does_not_fail_for_being_watched(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there too little memory for the maps, there would still be a prediction."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    rows = [Row({"body": build.encoded(build.noise(seed=seed))}) for seed in range(3)]
    expected = asked(service, NullObserver(), rows)
    monkeypatch.setattr(service._entry_point.__self__.pipeline._explainer, "_round", fail)
    output = Output()
    observer = monitor(output)

    assert asked(service, observer, rows) == expected
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 3
    assert output.totals()["camserve_maps_total",] == 0


def test_a_picture_that_cannot_be_watched_is_answered(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it."""
    rows = [Row({"body": build.encoded(build.noise(seed=seed))}) for seed in range(3)]
    expected = asked(service, NullObserver(), rows)
    monkeypatch.setattr("camserve.pipeline.pipeline.sample_rows", lambda _: 1 / 0)
    output = Output()
    observer = monitor(output)

    assert asked(service, observer, rows) == expected
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 3


OF_ANOTHER_TYPE = """
from torch import bfloat16
from gradcam_handler import GradCAMHandler
from torchvision.transforms.functional import center_crop, to_tensor
class Own(GradCAMHandler):
    def image_processing(self, image):
        return center_crop(to_tensor(image), 64).to(bfloat16).requires_grad_()
"""


def test_an_input_of_a_handlers_own_type_is_watched(tmp_path: Path) -> None:
    """Of half precision, or with a graph."""
    folder = build.archive(tmp_path / "half", {"layers": ["features"]}, handler=OF_ANOTHER_TYPE, fault="x = x.float()")
    output = Output()
    service = load_monitored(folder)
    observer = service._entry_point.__self__.pipeline.observer = monitor(output)

    assert ask(service, [Row({"body": build.encoded(build.noise())})])[0].status == 200
    observer.flush()
    assert output.totals()["camserve_maps_total",] == 1


def test_what_is_tried_again_for_want_of_memory_is_counted_once(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of two pictures, of which one did not fit beside its neighbour's."""
    texts = [base64.b64encode(build.encoded(build.noise(seed=seed))).decode() for seed in range(2)]
    rows = [Row({"body": {"instances": [{"data": text} for text in texts]}}), Row({"body": build.encoded(build.noise(seed=2))})]
    prepared, refused = Pictures.prepared, [Encoded(base64.b64decode(texts[1]))]

    def once_too_large(self: Pictures, item: Item, *args: Any, **more: Any) -> Prepared:
        if item.image in refused:
            refused.clear()
            raise MemoryError
        return prepared(self, item, *args, **more)

    monkeypatch.setattr(Pictures, "prepared", once_too_large)
    output = Output()
    observer = service._entry_point.__self__.pipeline.observer = monitor(output)

    assert [answer.status for answer in ask(service, rows)] == [200, 200]
    assert not refused
    observer.flush()
    assert output.totals()["camserve_maps_total",] == 3


def test_a_picture_that_the_model_fails_on_is_no_failure_of_watching(tmp_path: Path) -> None:
    """The chunk is halved down to that picture, and fails unwatched too: nothing is counted, and its neighbours are measured."""
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    fault = "assert not (x.amin((1, 2, 3)) == 1).any(), 'a white picture'"
    service = load_monitored(build.archive(tmp_path / "picky", fault=fault))
    output = Output()
    observer = service._entry_point.__self__.pipeline.observer = monitor(output)
    rows = [Row({"body": build.encoded(white if seed == 5 else build.noise(seed=seed))}) for seed in range(8)]

    assert [answer.status for answer in ask(service, rows)] == [200] * 5 + [500] + [200] * 2
    observer.flush()
    assert output.totals()["camserve_unmeasured_maps_total", "failed"] == 0
    assert output.totals()["camserve_maps_total",] == 7


def test_bad_requests_are_not_measured_but_counted(service: Any) -> None:
    """The picture that cannot be read leaves its neighbours measured."""
    output = Output()
    observer = monitor(output)
    service._entry_point.__self__.pipeline.observer = observer
    ask(service, [Row({"body": build.encoded(build.noise())}), Row({"body": b"no picture"}), Row({"body": b"none"}, {}, True)])
    observer.close()
    found = output.totals()

    assert found["camserve_maps_total",] == 1
    assert found["camserve_requests_total", "predict", "ok"] == 1
    assert found["camserve_requests_total", "predict", "client_error"] == 1
    assert found["camserve_requests_total", "explain", "client_error"] == 1
    assert found["camserve_stage_seconds_count", "batch"] == 1


@pytest.fixture
def dear(service: Any) -> Explainer:
    """The small model, taken as one whose maps take backward passes."""
    backend = service._entry_point.__self__.pipeline._explainer._backend
    return Explainer(replace(backend, closed_form=()), torch.device("cpu"))


def maps_made(explainer: Explainer, chunks: int, pictures: int = 1) -> list[int]:
    """How many maps each of some chunks of watched pictures gets."""
    chunk = [torch.rand(3, 64, 64) for _ in range(pictures)]
    found = [explainer.explain(chunk, [None] * pictures, range(pictures)) for _ in range(chunks)]
    return [len(seen.raw) for several in found for seen in several]


def test_where_watching_takes_passes_it_keeps_to_its_share_of_the_time(dear: Explainer) -> None:
    """Maps beyond the budget are left out, and it is counted how many."""
    output = Output()
    observer = dear.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    assert maps_made(dear, 2, pictures=3) == [0] * 6
    observer.budget.add(1, work=1e3, spent=0.0)
    assert 0 not in maps_made(dear, 2, pictures=3)
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 6


def test_a_chunk_that_fails_leaves_nothing_out(dear: Explainer) -> None:
    """Its halves come again, and are counted then."""
    output = Output()
    observer = dear.observer = monitor(output)
    observer.budget.add(1, work=0.0, spent=1.0)
    with pytest.raises(RuntimeError):
        dear.explain([torch.rand(4, 64, 64)], [None], [0])
    observer.flush()

    assert output.totals()["camserve_unmeasured_maps_total", "budget"] == 0


def test_the_passes_of_watching_are_charged(dear: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: the work is what a prediction takes anyway, with the maps that are asked for, and the rest is watching's."""
    times = iter([10.0, 13.0, 13.5])
    monkeypatch.setattr("camserve.explain.explainer.time.perf_counter", lambda: next(times))
    charged: list[tuple[int, float, float]] = []
    dear.observer = Seeing()
    dear.observer.budget = SimpleNamespace(add=lambda *each: charged.append(each), allows=lambda: True, limited=True)
    maps_made(dear, 1, pictures=2)

    assert charged == [(2, 3.0, 0.5)]


def test_a_budget_that_is_not_used_is_not_saved_up() -> None:
    """A day of explanations, whose maps are made anyway, must not be followed by hours of dear predictions."""
    budget = Budget(lambda _: 0.1)
    for _ in range(10_000):
        budget.add(1, work=1.0, spent=0.0)
    budget.add(1, work=1.0, spent=SAVED)
    assert budget.allows()
    budget.add(1, work=0.0, spent=0.2)
    assert not budget.allows()


def test_where_watching_takes_passes_the_runner_ups_map_is_made_for_some(dear: Explainer) -> None:
    """One chunk of four, for a monitor; a observer without a budget, such as the reference's, gets all."""
    dear.observer = monitor(Output())
    dear.observer.budget.add(1, work=1e6, spent=0.0)
    assert maps_made(dear, 8) == [2, 1, 1, 1, 2, 1, 1, 1]
    dear.observer = Seeing()
    assert maps_made(dear, 3) == [2, 2, 2]


def test_the_watcher_of_a_pipeline_is_its_explainers_too(service: Any) -> None:
    """Whoever replaces it, as scripts/reference.py does, is told of the passes, and asked what they may cost."""
    pipeline = service._entry_point.__self__.pipeline
    pipeline.observer = observer = Seeing()

    assert pipeline._explainer.observer is observer
