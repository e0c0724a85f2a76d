"""Under which conditions figures were taken, and how ratios are taken: in turns, as medians."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.java import find_java

PACKAGES = ("torch", "torchvision", "torchserve", "captum", "grad-cam", "torchcam", "pillow", "opencv-python-headless", "numpy")


def conditions(**more: object) -> dict[str, str]:
    """What the figures depend on, in words; `more` are the measurement's own."""
    found = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": f"{count_cores()} of {os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "torch's threads": f"{torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}",
        "load when it began": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }
    return found | {name.replace("_", " "): str(value) for name, value in more.items()}


def java_version() -> str:
    """The release of the Java that runs TorchServe."""
    return str(find_java().release)


def processor() -> str:
    """Its name, family and model, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        values = dict(part.split(":", 1) for part in (line.replace("\t", "") for line in lines) if ":" in part)
        return f"{values['model name'].strip()} (family {values['cpu family'].strip()}, model {values['model'].strip()})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Spread:
    """A median and the quartles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(middle, low, high)

    def shown(self, digits: int = 2) -> str:
        """`1.04 (1.03 to 1.06)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def alternate(
    work: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Runs everything once in each round, in an order drawn anew, and returns what each gave; a first round is dropped."""
    order, drawn = list(work), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        drawn.shuffle(order)
        for name in order:
            say(f"{f'round {turn} of {rounds}' if turn else 'warm-up'}: {name}")
            value = work[name]()
            if turn:
                found[name].append(value)
    return found


def seconds_of(work: Callable[[], object], processor: bool = False) -> Callable[[], float]:
    """`work`, which then tells how long it took; with `processor`, the processor's seconds of all threads together."""
    clock = time.process_time if processor else time.perf_counter

    def timed() -> float:
        begun = clock()
        work()
        return clock() - begun

    return timed


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what slows a whole round does not count."""
    return [one / other for one, other in zip(above, below, strict=True)]
