"""Updates and ends what runs on a Ray cluster, from outside."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camserve.core.errors import ArchiveError, ConfigError
from camserve.core.text import show
from camserve.tools.serving.process.errors import ServeError
from camserve.tools.serving.process.ray_cluster import LOOPBACK

PATIENCE = 1800.0
"""Seconds in which the new replicas must serve."""


def update_cluster(address: str, archives: Sequence[Path], deployments: Mapping[str, Any] | None) -> None:
    """Put archives in the place of those of the same name, and return once the new replicas serve.

    Args:
        address: HOST:PORT of the cluster, or `auto`.
        deployments: as `RayServer` takes them; None: as they are.

    Raises:
        ServeError: the archives cannot be served; what ran before goes on.
    """
    _connect(address)
    from camserve.hosts.ray import status  # noqa: PLC0415 an extra brings Ray

    try:
        status.update([str(each.resolve()) for each in archives], deployments)
    except (ArchiveError, ConfigError) as error:
        raise ServeError(str(error)) from error
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        failure = status.find_failure()
        if failure is not None:
            raise ServeError(f"{failure}; what ran before goes on")
        if status.is_running():
            return
        time.sleep(0.5)
    raise ServeError("the new replicas do not serve yet: Ray may lack cores or GPUs for them beside the old ones")


def end_application(address: str, drain: float) -> None:
    """Refuse new requests, answer those in flight, and take the application off the cluster, which goes on.

    Args:
        drain: seconds that requests in flight may take.

    Raises:
        ServeError: they took longer.
    """
    _connect(address)
    from ray import serve  # noqa: PLC0415 an extra brings it

    from camserve.hosts.ray.model import APPLICATION  # noqa: PLC0415
    from camserve.hosts.ray.status import close_front  # noqa: PLC0415

    end = time.monotonic() + drain
    while close_front() != 0:
        if time.monotonic() > end:
            raise ServeError(f"requests are still in flight after --drain {drain:g} s; new ones are refused; stop it once more")
        time.sleep(0.2)
    serve.delete(APPLICATION)


def _connect(address: str) -> None:
    if address.startswith("127."):
        os.environ.setdefault(LOOPBACK, "0")
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # noqa: PLC0415 an extra brings it

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServeError(f"no Ray cluster at {show(address)}: {' '.join(str(error).split())}") from error
