"""How many processor cores this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's limit where there is one; at least 1."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(count, _quota(Path("/sys/fs/cgroup/cpu.max"), count)))


def _quota(path: Path, default: int) -> int:
    """The cores that a control group (version 2) grants, rounded up: `cpu.max` holds microseconds of how many."""
    try:
        granted, period = path.read_text("ascii").split()
        return default if granted == "max" else -(-int(granted) // int(period))
    except (OSError, ValueError):
        return default
