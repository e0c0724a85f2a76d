"""Composes the environment of TorchServe and its workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from camserve.core.config.switch import KEEP, KEEP_AT, read_switch
from camserve.core.config.watching import PLACE
from camserve.core.text import show
from camserve.core.values import read_hosts
from camserve.tools.serving.configuration.addresses import OURS, Addresses, Settings, is_loopback
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.store import StoredArchive
from camserve.tools.serving.process.errors import ServeError

HOSTS = "CAMSERVE_ALLOWED_HOSTS"
"""The variable that the handler reads. One that is set already is added to."""
ALLOWED = f"{OURS}allowed_hosts"

KEPT, KEPT_AT = f"{OURS}evidence", f"{OURS}evidence_to"

DROPPED = {"PYTHONPATH", "PYTHONHOME", "TS_CONFIG_FILE"}
"""Variables that are not passed on: each archive runs its own code, by the configuration that it is given."""


def compose_environment(
    settings: Settings, addresses: Addresses, archives: Sequence[StoredArchive], folder: Path
) -> dict[str, str]:
    """Returns this process's environment without what would beat the chosen addresses, with `folder` for temporary files, and
    with this machine's cores shared out among the workers."""
    dropped = DROPPED | {"TS_" + line.partition("=")[0].upper() for line in addresses.properties().split()}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    hosts = compose_hosts(settings, addresses, environment.get(HOSTS))
    if hosts:
        environment[HOSTS] = hosts
    environment.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // _count_workers(settings, archives))))
    environment |= compose_evidence(settings)
    return environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))


def compose_hosts(settings: Settings, addresses: Addresses, given: str | None) -> str | None:
    """Composes the host names by which requests may ask, for the handler to check; None: any.

    A server that only this machine reaches has no other names than its own, so pages of other sites cannot pose as one: by
    default these are checked. One that others reach has names that are known only where they are told.

    Raises:
        ServeError: they are no host names.
    """
    told = ",".join(each for each in (settings.own.get(ALLOWED), given) if each)
    own = addresses.http[0][1]
    if not told and not is_loopback(own):
        return None
    try:
        names = read_hosts([each.strip() for each in told.split(",") if each.strip()]) or ()
    except (TypeError, ValueError):
        raise ServeError(f"{ALLOWED}: expected host names with commas between them, got {show(told)}") from None
    return ",".join(dict.fromkeys(["localhost", *([own] if _is_name(own) else []), *names]))


def compose_evidence(settings: Settings) -> dict[str, str]:
    """Compose what workers are told of evidence: whether any is kept, and where. Variables that are set already beat the file.

    Raises:
        ServeError: neither true nor false, or no place.
    """
    composed = {}
    keeps = os.environ.get(KEEP) or settings.own.get(KEPT, "")
    if read_switch(KEPT, keeps, ServeError) is not None:
        composed[KEEP] = keeps.strip().lower()
    place = (os.environ.get(KEEP_AT) or settings.own.get(KEPT_AT, "")).strip()
    if place:
        place = place if "://" in place else str(Path(place).absolute())  # workers run elsewhere
        try:
            PLACE.read(place)
        except ValueError:
            raise ServeError(f"{KEPT_AT}: expected a folder, or a URL such as s3://bucket/folder, got {show(place)}") from None
        composed[KEEP_AT] = place
    return composed


def _is_name(host: str) -> bool:
    return ":" not in host and not host.replace(".", "").isdigit()


def _count_workers(settings: Settings, archives: Sequence[StoredArchive]) -> int:
    """Counts the workers of all models together."""
    default = settings.values.get("default_workers_per_model", "0")
    each = int(default) if default.isdigit() and int(default) > 0 else count_cores()
    return max(1, sum(archive.workers or each for archive in archives))
