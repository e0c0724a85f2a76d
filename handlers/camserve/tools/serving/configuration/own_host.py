"""What of TorchServe's configuration the ASGI host takes, with settings of its own, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from camserve.core.text import show
from camserve.hosts.asgi.client import Limits
from camserve.tools.serving.configuration.addresses import OURS, Settings
from camserve.tools.serving.process.errors import ServeError

REFUSED = {
    "models": "give batchSize, workers and the like in each archive's model-config.yaml",
    "load_models": "name the models with --models",
    "keystore": "give certificate_file and private_key_file (PEM); a keystore is Java's",
    "model_snapshot": "name the models with --models",
}
"""Settings that say something which this host does not do, and what to do instead."""
CORS = ("origin", "methods", "headers")
ONLY_FALSE = {
    "install_py_dep_per_model": "nothing is installed here: install the archives' requirements beforehand",
    "use_env_allowed_urls": "archives come from the model store alone",
}
OWN_MACHINE = 4
"""The share of the memory, one over this, that waiting requests may fill: as much as Java's heap."""


@dataclass(frozen=True)
class HostSettings:
    """What the configuration says to the ASGI host.

    Attributes:
        max_request_size, max_held: bytes of a body, and of all bodies in memory at once.
        gpus: most GPUs that are used; None: all.
        cors: headers by which pages of another site may read answers, as TorchServe's settings say.
    """

    max_request_size: int
    max_held: int
    limits: Limits
    gpus: int | None
    cors: Mapping[str, str]

    @staticmethod
    def read(settings: Settings) -> HostSettings:
        """Read the configuration.

        Raises:
            ServeError: a value is none, or a setting means what this host does not do.
        """
        refuse(settings)
        size = read_number(settings, "max_request_size", 6553500)
        kept = Limits()
        limits = Limits(
            connections=read_number(settings, f"{OURS}max_connections", kept.connections),
            head=read_number(settings, f"{OURS}max_head_size", kept.head),
            head_seconds=read_number(settings, f"{OURS}head_seconds", int(kept.head_seconds)),
            body_seconds=read_number(settings, f"{OURS}body_seconds", int(kept.body_seconds)),
            send_seconds=read_number(settings, f"{OURS}send_seconds", int(kept.send_seconds)),
        )
        held = read_number(settings, f"{OURS}max_held_bytes", max(size, find_memory() // OWN_MACHINE))
        gpus = read_number(settings, "number_of_gpu", 0, least=0) if "number_of_gpu" in settings.values else None
        told = {name: settings.values.get(f"cors_allowed_{name}", "").strip() for name in CORS}
        cors = {f"access-control-allow-{name}": value for name, value in told.items() if value} if told["origin"] else {}
        return HostSettings(size, held, limits, gpus, cors)


def refuse(settings: Settings) -> None:
    """Refuse what would be passed over without a word.

    Raises:
        ServeError: a setting means what this host does not do.
    """
    if not settings.is_set("disable_token_authorization"):
        raise ServeError(
            "disable_token_authorization is not true, and the ASGI host has no tokens: set it to true, and put a proxy that "
            "authenticates in front of every address that is not loopback"
        )
    found = {key: why for key, why in REFUSED.items() if settings.values.get(key, "") not in ("", "false", "none")}
    found |= {key: why for key, why in ONLY_FALSE.items() if settings.is_set(key)}
    for key, why in found.items():
        raise ServeError(f"{key}={show(settings.values[key])}: the ASGI host has no such thing; remove it: {why}")


def read_number(settings: Settings, key: str, default: int, least: int = 1) -> int:
    """Read a whole number.

    Raises:
        ServeError: it is none, or too small.
    """
    values = settings.own if key.startswith(OURS) else settings.values
    text = values.get(key, str(default))
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ServeError(f"{key}={show(text)} cannot be used: a whole number of at least {least} is accepted")
    return int(text)


def find_memory() -> int:
    """Return the bytes of memory of this machine, or of the container where it may have less."""
    import psutil  # noqa: PLC0415 an extra brings it

    most = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(most, int(Path("/sys/fs/cgroup", name).read_text("ascii")))
        except (OSError, ValueError):
            continue
    return most
