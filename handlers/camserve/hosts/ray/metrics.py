"""Counts in a replica: for `ray.util.metrics`, which each node exposes, and for whoever asks the replica itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray.util import metrics

from camserve.hosts.metrics import Labels, Registry


@dataclass(frozen=True)
class Counted:
    """What a replica has counted since it started: for each name, a value by labels; and which names are gauges."""

    replica: str
    values: Mapping[str, Mapping[Labels, float]]
    gauges: frozenset[str]


class ReplicaRegistry(Registry):
    """A registry that hands everything on to Ray, which adds `ray_` to the names."""

    def __init__(self) -> None:
        super().__init__()
        self._counters: dict[str, metrics.Counter] = {}
        self._levels: dict[str, metrics.Gauge] = {}

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Add to a counter."""
        super().add(name, labels, amount)
        if amount > 0:
            if name not in self._counters:
                self._counters[name] = metrics.Counter(name, tag_keys=tuple(labels))
            self._counters[name].inc(amount, dict(labels))

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""
        super().set(name, labels, value)
        if name not in self._levels:
            self._levels[name] = metrics.Gauge(name, tag_keys=tuple(labels))
        self._levels[name].set(value, dict(labels))

    def copy(self, replica: str) -> Counted:
        """Return what was counted so far."""
        with self._lock:
            return Counted(replica, {name: dict(series) for name, series in self._values.items()}, frozenset(self._gauges))


class Collection(Registry):
    """The sum over all replicas, those that are gone included, so that no counter falls."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[tuple[str, str, Labels], float] = {}

    def collect(self, replicas: Iterable[Counted]) -> None:
        """Add what each has counted since it was last collected; a gauge becomes the last replica's."""
        for each in replicas:
            for name, series in each.values.items():
                for labels, value in series.items():
                    if name in each.gauges:
                        self.set(name, dict(labels), value)
                        continue
                    key = (each.replica, name, labels)
                    self.add(name, dict(labels), value - self._before.get(key, 0.0))
                    self._before[key] = value
