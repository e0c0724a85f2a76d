"""What tests of monitoring share: an observation, a reference, and a monitor whose output is kept."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import camserve
from camserve.core.config.watching import Monitoring
from camserve.explain.observer import NullObserver, Observation, sample_rows
from camserve.monitoring.exporter import Exporter
from camserve.monitoring.monitor import Monitor
from camserve.monitoring.reference import BINS, UNSEEN, Provenance, Reference
from camserve.monitoring.statistics import STATISTICS, Scale

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
