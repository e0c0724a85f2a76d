"""Metric lines: whole, readable and exact."""

from __future__ import annotations

import io
import os
import re
import threading
from collections import Counter

import pytest
from tests.support.monitoring.monitors import LINE, Output

from camserve.monitoring import metrics
from camserve.monitoring.exporter import Exporter, StageHistograms, clean_label, format_number


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (0, "0"), (1e-7, "0.0000001"), (1e16, "10000000000000000"), (0.25, "0.25"), (0.0, "0")]
)
def test_numbers_are_written_as_the_server_can_read_them(value: float, text: str) -> None:
    """Its expression knows no `+`, `nan` or `inf`."""
    assert format_number(value) == text
    assert re.fullmatch(r"[0-9\-,.e]+", format_number(value))


@pytest.mark.parametrize(
    ("given", "label"), [("tabby, tabby cat", "tabby__tabby_cat"), ("a:b|c", "a_b_c"), ("", "_"), ("Ä\n", "__")]
)
def test_labels_cannot_break_a_metric_line(given: str, label: str) -> None:
    """Commas, colons, bars and line ends would lose the sample, or a label."""
    assert clean_label(given) == label


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
    StageHistograms(exporter).add([("forward", 0.001), ("forward", 0.03), ("forward", 99.0), ("decode", 0.00005)])
    exporter.flush()
    found = output.totals()

    buckets = {key[2]: value for key, value in found.items() if key[:2] == ("camserve_stage_seconds_bucket", "forward")}
    assert [buckets[edge] for edge in ("0.0005", "0.001", "0.025", "0.05", "10", "+Inf")] == [0, 1, 1, 2, 2, 3]
    assert found["camserve_stage_seconds_count", "forward"] == 3
    assert found["camserve_stage_seconds_sum", "forward"] == pytest.approx(99.031)
    assert found["camserve_stage_seconds_bucket", "decode", "0.0001"] == 1
    assert found["camserve_stage_seconds_count", "render"] == 0
