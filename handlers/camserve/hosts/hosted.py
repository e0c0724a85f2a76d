"""What a host serves: an archive with the settings that its configuration gives the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.core.errors import ConfigError
from camserve.pipeline.archive import Archive

BATCH_SIZE, RESPONSE_TIMEOUT, STARTUP_TIMEOUT, QUEUE_SIZE, RETRY_TIMEOUT = 1, 120, 120, 100, 300
"""TorchServe's own defaults."""

ONLY_TORCHSERVE: Mapping[str, tuple[object, ...]] = {
    "parallelType": (None, "", "none", "custom"),
    "continuousBatching": (None, False),
    "sequenceBatching": (None, False),
    "asyncCommunication": (None, False),
    "useJobTicket": (None, False),
    "useVenv": (None, False),
    "deviceIds": (None, []),
}
"""Settings of an archive that only TorchServe has, and the values that change nothing."""


@dataclass(frozen=True)
class Hosted:
    """An archive to be served.

    Attributes:
        name, version: in URLs.
        file: the archive's file, as the management address shows it.
        directory: where it is unpacked.
        workers: processes that run its handler.
        batch_size: most requests that a worker gets at once.
        batch_delay: milliseconds that a worker waits for more requests; shown only: a worker takes what waits when it is free.
        response_timeout: seconds from a request's arrival to its answer.
        startup_timeout: seconds in which a worker must have loaded the model.
        queue_size: most requests that wait for a worker.
        retry_timeout: seconds without any worker after which the server says that it is unhealthy.
        on_gpu: whether its workers are given a GPU where there is one: not by `deviceType: cpu`.
    """

    name: str
    version: str
    file: str
    directory: Path
    workers: int = 1
    batch_size: int = BATCH_SIZE
    batch_delay: int = 100
    response_timeout: int = RESPONSE_TIMEOUT
    startup_timeout: int = STARTUP_TIMEOUT
    queue_size: int = QUEUE_SIZE
    retry_timeout: int = RETRY_TIMEOUT
    on_gpu: bool = True

    @staticmethod
    def from_archive(archive: Archive, file: str, name: str, workers: int, defaults: Mapping[str, int]) -> Hosted:
        """Read an archive's settings.

        Args:
            name: in URLs.
            workers: how many processes.
            defaults: `responseTimeout`, `startupTimeout` and `jobQueueSize` where the archive gives none.

        Raises:
            ConfigError: a setting is no whole number, or an envelope is asked for.
        """
        config = archive.config
        if config.get("serviceEnvelope") or archive.manifest["model"].get("envelope"):
            raise ConfigError("serviceEnvelope: no envelope is needed or possible: the handler reads V1 and V2 itself; remove it")

        _refuse_settings(config)

        def number(key: str, default: int) -> int:
            return _whole(config, key, defaults.get(key, default))

        return Hosted(
            name,
            archive.version or "1.0",
            file,
            archive.directory,
            workers,
            number("batchSize", BATCH_SIZE),
            number("maxBatchDelay", 100),
            number("responseTimeout", RESPONSE_TIMEOUT),
            number("startupTimeout", STARTUP_TIMEOUT),
            number("jobQueueSize", QUEUE_SIZE),
            number("maxRetryTimeoutInSec", RETRY_TIMEOUT),
            str(config.get("deviceType", "")).lower() != "cpu",
        )


def _refuse_settings(config: Mapping[str, Any]) -> None:
    for key, harmless in ONLY_TORCHSERVE.items():
        if config.get(key) not in harmless:
            raise ConfigError(f"{key}: {config[key]!r} is TorchServe's alone; remove it, or serve with --host torchserve")
    kind = config.get("deviceType")
    if kind not in (None, "cpu", "gpu", "nvidia"):
        raise ConfigError(f"deviceType: cpu or gpu is accepted, got {kind!r}; other devices are TorchServe's alone")


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < (0 if key == "maxBatchDelay" else 1):
        raise ConfigError(f"{key}: expected a whole number of at least 1, got {value!r}")
    return value
