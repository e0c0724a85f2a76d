"""Exports counters and gauges through TorchServe's own Prometheus endpoint, as lines on standard output. No TorchServe import."""

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
"""POSIX: a write of at most this many bytes (on Linux) to a pipe is atomic."""


def write_stdout(block: bytes) -> None:
    """Writes to file descriptor 1 directly.

    `print` emits text and newline separately, so other output could split a line. A closed pipe is ignored.
    """
    with contextlib.suppress(OSError):
        os.write(1, block)


class Exporter:
    """Collects changes of metrics, and writes them as TorchServe's metric lines. Thread-safe.

    A line is the change of one series since the last flush. Lines are written in blocks of at most `PIPE_BUF` bytes that begin
    and end with a newline: so whatever a model prints, even half a line, cannot corrupt them.

    Args:
        model_name, model_version: values of these two labels, which every series has.
        write: writes one block.
    """

    def __init__(self, model_name: str, model_version: str, write: Callable[[bytes], object] = write_stdout) -> None:
        self._common = (clean_label(model_name), clean_label(model_version))
        self._host = clean_label(socket.gethostname())
        self._write = write
        self._lock = threading.Lock()
        self._changes: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def add(self, metric: Metric, labels: Sequence[str] = (), amount: float = 1) -> None:
        """Adds to a counter; adding 0 makes the series appear."""
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
        sample = f"{metric.name}.{metric.unit}:{format_number(value)}"
        return f"[METRICS]{sample}|#{dimensions}|#type:{metric.kind}|#hostname:{self._host},{now}\n".encode()


def clean_label(text: str) -> str:
    """Replaces what the server's line format cannot carry in a label's value (comma, colon, bar, space); never returns ""."""
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)[:120] or "_"


def format_number(value: float) -> str:
    """Formats a number so that the server can read it: without `+`, `nan` and `inf`."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


class StageHistograms:
    """Histograms of the stages' seconds, in cumulative buckets as Prometheus's client libraries expose them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._labels = (*(f"{edge:g}" for edge in EDGES), "+Inf")
        for stage in STAGES:
            for label in self._labels:
                exporter.add(STAGE_BUCKET, (stage, label), 0)
            exporter.add(STAGE_SUM, (stage,), 0)
            exporter.add(STAGE_COUNT, (stage,), 0)

    def add(self, times: Sequence[tuple[str, float]]) -> None:
        """Adds pairs of (stage, seconds)."""
        for stage in {stage for stage, _ in times}:
            seconds = [each for name, each in times if name == stage]
            places = [bisect_left(EDGES, each) for each in seconds]
            for place, label in enumerate(self._labels):
                within = sum(each <= place for each in places)
                if within:
                    self._exporter.add(STAGE_BUCKET, (stage, label), within)
            self._exporter.add(STAGE_SUM, (stage,), sum(seconds))
            self._exporter.add(STAGE_COUNT, (stage,), len(seconds))
