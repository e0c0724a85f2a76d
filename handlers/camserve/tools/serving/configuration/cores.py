"""Counts the processor cores that this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def count_cores() -> int:
    """Counts the cores of this process's affinity, up to a container's limit where there is one; at least 1."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(count, _quota(Path("/sys/fs/cgroup"), count)))


def _quota(root: Path, default: int) -> int:
    """Reads the cores that a control group grants, rounded up: processor time granted in each period. Version 2 has both figures
    in `cpu.max`, version 1 in two files, with -1 for no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            granted, period = " ".join((root / name).read_text("ascii") for name in files).split()
            return default if granted in ("max", "-1") else -(-int(granted) // int(period))
        except (OSError, ValueError):
            continue
    return default
