"""Counters and gauges on TorchServe's own Prometheus endpoint, told in lines on standard output. No TorchServe import.

`metrics.yaml` beside this file declares the same metrics to the server, which exports no others.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PIPE_BUF = 4096
"""POSIX: writes to a pipe of at most this many bytes (on Linux) are never mixed with others'."""


@dataclass(frozen=True)
class Metric:
    """A metric as `metrics.yaml` declares it; every metric has the labels `model_name` and `model_version` besides."""

    name: str
    kind: Literal["COUNTER", "GAUGE"]
    unit: str
    labels: tuple[str, ...] = ()


REQUESTS = Metric("camserve_requests_total", "COUNTER", "Count", ("mode", "outcome"))
RESPONSE_BYTES = Metric("camserve_response_bytes_total", "COUNTER", "Bytes", ("mode",))
MAPS = Metric("camserve_maps_total", "COUNTER", "Count")
DEGENERATE = Metric("camserve_degenerate_maps_total", "COUNTER", "Count", ("reason",))
UNMEASURED = Metric("camserve_unmeasured_maps_total", "COUNTER", "Count", ("reason",))
MAP_BIN = Metric("camserve_map_bin_total", "COUNTER", "Count", ("stat", "bin", "reference"))
STAGE_BUCKET = Metric("camserve_stage_seconds_bucket", "COUNTER", "Count", ("stage", "le"))
STAGE_SUM = Metric("camserve_stage_seconds_sum", "COUNTER", "Seconds", ("stage",))
STAGE_COUNT = Metric("camserve_stage_seconds_count", "COUNTER", "Count", ("stage",))
MONITORED = Metric("camserve_monitored_ratio", "GAUGE", "Ratio")
REFERENCE = Metric("camserve_map_bin_reference_ratio", "GAUGE", "Ratio", ("stat", "bin", "reference"))
REFERENCE_IMAGES = Metric("camserve_map_reference_images", "GAUGE", "Count", ("stat", "reference"))
GROUP_REFERENCE = Metric("camserve_map_bin_group_reference_ratio", "GAUGE", "Ratio", ("stat", "bin", "class_group", "reference"))
GROUP_IMAGES = Metric("camserve_group_reference_images", "GAUGE", "Count", ("class_group", "reference"))
METRICS = (
    *(REQUESTS, RESPONSE_BYTES, MAPS, DEGENERATE, UNMEASURED, MAP_BIN, STAGE_BUCKET, STAGE_SUM, STAGE_COUNT),
    *(MONITORED, REFERENCE, REFERENCE_IMAGES, GROUP_REFERENCE, GROUP_IMAGES),
)

STAGES = ("batch", "decode", "forward", "backward", "render")
EDGES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper edges of the stages' buckets, in seconds: a map takes a tenth of a millisecond, a large batch seconds."""


def undeclared(cache: Mapping[object, Collection[str]]) -> list[str]:
    """Those metrics that a server does not export, by what its `metrics_config` declares: names by kind."""
    declared = {name for names in cache.values() for name in names}
    return [metric.name for metric in METRICS if metric.name not in declared]


def write_stdout(block: bytes) -> None:
    """Writes past Python's own buffer, whose text and line ends are written apart; nobody's reading is not our failure."""
    with contextlib.suppress(OSError):
        os.write(1, block)


class Exporter:
    """Collects what has changed, and writes it as TorchServe's metric lines. Safe for threads.

    A line is the change of one series since the last flush. Lines are written in blocks of at most `PIPE_BUF` bytes, each of
    which begins and ends with a line end: so nothing that a model prints, not even half a line, gets mixed into them.

    Args:
        model_name, model_version: the values of these labels.
        write: takes one block.
    """

    def __init__(self, model_name: str, model_version: str, write: Callable[[bytes], object] = write_stdout) -> None:
        self._common = (plain(model_name), plain(model_version))
        self._host = plain(socket.gethostname())
        self._write = write
        self._lock = threading.Lock()
        self._changes: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def add(self, metric: Metric, labels: Sequence[str] = (), amount: float = 1) -> None:
        """Adds to a counter; 0 makes the series appear."""
        key = (metric, tuple(labels))
        with self._lock:
            self._changes[key] = self._changes.get(key, 0) + amount

    def set(self, metric: Metric, labels: Sequence[str], value: float) -> None:
        """Sets a gauge."""
        with self._lock:
            self._changes[metric, tuple(labels)] = value

    def flush(self) -> None:
        """Writes what has changed since the last flush."""
        with self._lock:
            changes, self._changes = self._changes, {}
        now = int(time.time())
        block = bytearray(b"\n")
        for (metric, labels), value in changes.items():
            line = self._line(metric, labels, value, now)
            if len(block) + len(line) > PIPE_BUF:
                self._write(bytes(block))
                block = bytearray(b"\n")
            block += line
        if changes:
            self._write(bytes(block))

    def _line(self, metric: Metric, labels: tuple[str, ...], value: float, now: int) -> bytes:
        names = (*metric.labels, "model_name", "model_version")
        dimensions = ",".join(f"{name}:{label}" for name, label in zip(names, (*labels, *self._common), strict=True))
        what = f"{metric.name}.{metric.unit}:{number(value)}"
        return f"[METRICS]{what}|#{dimensions}|#type:{metric.kind}|#hostname:{self._host},{now}\n".encode()


def plain(text: str) -> str:
    """A label's value that the server's line format can carry: no comma, colon, bar or space; never empty."""
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)[:120] or "_"


def number(value: float) -> str:
    """A number that the server can read: it knows no `+`, `nan` or `inf`."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


class StageTimes:
    """Cumulative histograms of the stages' seconds, as Prometheus's client libraries expose them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._labels = (*(f"{edge:g}" for edge in EDGES), "+Inf")
        for stage in STAGES:
            for label in self._labels:
                exporter.add(STAGE_BUCKET, (stage, label), 0)
            exporter.add(STAGE_SUM, (stage,), 0)
            exporter.add(STAGE_COUNT, (stage,), 0)

    def add(self, times: Sequence[tuple[str, float]]) -> None:
        """Counts (stage, seconds) pairs."""
        for stage in {stage for stage, _ in times}:
            seconds = [each for name, each in times if name == stage]
            places = [bisect_left(EDGES, each) for each in seconds]
            for place, label in enumerate(self._labels):
                within = sum(each <= place for each in places)
                if within:
                    self._exporter.add(STAGE_BUCKET, (stage, label), within)
            self._exporter.add(STAGE_SUM, (stage,), sum(seconds))
            self._exporter.add(STAGE_COUNT, (stage,), len(seconds))
