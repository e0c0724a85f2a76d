"""Counters and gauges on TorchServe's own Prometheus endpoint, told in lines on standard output. No TorchServe import."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from camserve.monitoring.metrics import EDGES, STAGE_BUCKET, STAGE_COUNT, STAGE_SUM, STAGES, Metric

PIPE_BUF = 4096
"""POSIX: writes to a pipe of at most this many bytes (on Linux) are never mixed with others'."""


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
