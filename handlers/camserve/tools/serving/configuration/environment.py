"""Composes the environment of TorchServe and its workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.store import StoredArchive

DROPPED = {"PYTHONPATH", "PYTHONHOME", "TS_CONFIG_FILE"}
"""Variables that are not passed on: each archive runs its own code, by the configuration that it is given."""


def compose_environment(
    settings: Settings, addresses: Addresses, archives: Sequence[StoredArchive], folder: Path
) -> dict[str, str]:
    """Returns this process's environment without what would beat the chosen addresses, with `folder` for temporary files, and
    with this machine's cores shared out among the workers."""
    dropped = DROPPED | {"TS_" + line.partition("=")[0].upper() for line in addresses.properties().split()}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // _count_workers(settings, archives))))
    return environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))


def _count_workers(settings: Settings, archives: Sequence[StoredArchive]) -> int:
    """Counts the workers of all models together."""
    default = settings.values.get("default_workers_per_model", "0")
    each = int(default) if default.isdigit() and int(default) > 0 else count_cores()
    return max(1, sum(archive.workers or each for archive in archives))
