"""Collects the metrics of the server and of its workers, and writes them as Prometheus reads them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping

from camserve.monitoring.metrics import METRICS

LINE = re.compile(
    r"\[METRICS\]([A-Za-z_:][\w:]*)\.[^:]+:(-?[\d.eE+-]+)\|#([^|]*)\|#type:(COUNTER|GAUGE|HISTOGRAM)\|#hostname:([^,]*)"
)
"""A metric's line on a worker's standard output, in TorchServe's format: name, value, labels, kind, and the machine."""

Labels = tuple[tuple[str, str], ...]


class Registry:
    """Counters and gauges by name and labels; those that archives export are there from the start. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {metric.name: {} for metric in METRICS}
        self._gauges = {metric.name for metric in METRICS if metric.kind == "GAUGE"}

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Add to a counter; adding 0 makes the series appear."""
        key = tuple(labels.items())
        with self._lock:
            series = self._values.setdefault(name, {})
            series[key] = series.get(key, 0.0) + amount

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges.add(name)
            self._values.setdefault(name, {})[tuple(labels.items())] = value

    def read_line(self, line: str) -> bool:
        """Take a worker's line if it is a metric's; return whether it is one."""
        match = LINE.search(line)
        if not match:
            return False
        name, value, labels, kind, host = match.groups()
        pairs = dict(pair.partition(":")[::2] for pair in labels.split(",") if ":" in pair)
        pairs["Hostname"] = host  # as TorchServe adds it
        (self.add if kind == "COUNTER" else self.set)(name, pairs, float(value))
        return True

    def expose(self, names: Iterable[str] = ()) -> str:
        """Write the metrics in Prometheus's text format; `names`: those alone, where any are given."""
        wanted = set(names)
        lines: list[str] = []
        with self._lock:
            for name, series in sorted(self._values.items()):
                if wanted and name not in wanted:
                    continue
                lines.append(f"# TYPE {name} {'gauge' if name in self._gauges else 'counter'}")
                for labels, value in series.items():
                    text = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels)
                    lines.append(f"{name}{{{text}}} {value!r}")
        return "\n".join([*lines, ""])


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
