"""The application that Ray Serve runs: a front that speaks HTTP, and a deployment for each archive."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from camserve.core.errors import ConfigError
from camserve.hosts.asgi.app import MAX_HELD, App, find_route
from camserve.hosts.asgi.client import Client
from camserve.hosts.hosted import Hosted
from camserve.hosts.ray import FRONT
from camserve.hosts.ray.lines import Lines
from camserve.hosts.ray.metrics import Counted, ReplicaRegistry
from camserve.hosts.ray.model import VERSION, Remote, Watch
from camserve.hosts.ray.replica import Deployed, Replica
from camserve.hosts.ray.unpacked import find_digest, unpack_once
from camserve.hosts.worker import HostError

AT_ONCE = 4096
"""Requests that one front holds; what waits for a model beyond its `jobQueueSize` is refused."""
MAX_REQUEST_SIZE = 32 * 2**20

ARGUMENTS = ("archives", "models", "defaults", "max_request_size", "max_held", "cors", "allowed_hosts")
OPTIONS = (
    *("num_replicas", "autoscaling_config", "ray_actor_options", "max_replicas_per_node"),
    *("graceful_shutdown_timeout_s", "max_surge_percent"),
)
"""What may be said of a model's deployment, by Ray Serve's own names."""


class FrontApp(App):
    """The application, which can be closed: what it has is answered, and what comes then is refused.

    Attributes:
        busy: how many requests it has.
    """

    adds_id = True  # Serve's middleware
    busy = 0
    closed = False

    async def answer(self, client: Client) -> None:
        """Answer a request of a client."""
        if self.closed:
            raise HostError(503, "Stopping", "the server is about to stop and takes no more requests; try again later")
        route = find_route(client.path)
        VERSION.set(route[0].groupdict().get("version") if route else None)
        self.busy += 1
        try:
            await super().answer(client)
        finally:
            self.busy -= 1


class Front:
    """Reads requests, finds their model, and writes answers; any number of them may stand side by side.

    Args:
        deployed: the archives.
        handles: of their deployments, in the same order.
        arguments: those of `build`.
    """

    def __init__(
        self, deployed: Sequence[Deployed], handles: Sequence[DeploymentHandle[Any]], arguments: Mapping[str, Any]
    ) -> None:
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._lines = Lines(f"{FRONT}-{self._name}")
        watch = Watch()
        self._registry = ReplicaRegistry()
        models = [Remote(*each, watch, self._registry) for each in zip(deployed, handles, strict=True)]
        self._arguments = dict(arguments)
        limits = int(arguments.get("max_request_size", MAX_REQUEST_SIZE)), int(arguments.get("max_held", MAX_HELD))
        self._app = FrontApp(models, *limits)
        self._app.allowed_hosts = arguments.get("allowed_hosts")
        self._app.cors = arguments.get("cors", {})

    def __serve_build_asgi_app__(self) -> App:
        """Return the application of the ASGI standard, which Serve asks for."""
        return self._app

    async def lines(self, positions: Mapping[str, int]) -> tuple[str, tuple[str, ...], int, Counted]:
        """Return the replica's name, its lines since its position when it was last asked, the position now, and its counts."""
        return self._name, *self._lines.since(positions.get(self._name, 0)), self._registry.copy(self._name)

    async def arguments(self) -> dict[str, Any]:
        """Return the arguments by which the application was built."""
        return self._arguments

    async def close(self) -> int:
        """Refuse what comes from now on; return how many requests are still to be answered."""
        self._app.closed = True
        return self._app.busy


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Build the application; what a Serve configuration file names as `import_path`, with its `args`.

    Args:
        arguments: `archives`, paths that are the same on every node, or ALIAS=PATH; `models`, the options of a model's
            deployment by its name, `@front` for what speaks HTTP, `*` for all other models; `defaults`, TorchServe's
            `responseTimeout`, `startupTimeout` and `jobQueueSize` where an archive gives none; `max_request_size` and
            `max_held`, bytes of a body and of all that a front has at once; `allowed_hosts`, names by which it may be asked
            (without it: any); `cors`, headers of every answer.

    Raises:
        ConfigError: an argument is unknown or cannot be used.
        ArchiveError: an archive cannot be opened.
    """
    return compose(read_all(arguments), arguments)


def compose(deployed: Sequence[Deployed], arguments: Mapping[str, Any]) -> serve.Application:
    """Compose the application of archives that are read already; otherwise as `build`."""
    models = check_models(arguments.get("models") or {}, [each.hosted.name for each in deployed])
    replicas = [_bind(each, models.get(each.hosted.name, models.get("*", {}))) for each in deployed]
    own = models.get(FRONT, {})
    front = serve.deployment(
        serve.ingress()(Front),
        name=FRONT,
        max_ongoing_requests=AT_ONCE,
        max_surge_percent=100,  # in an update the new one is there before the old one goes
    ).options(version=_name_version(deployed, arguments), _internal=True, **{"ray_actor_options": {"num_cpus": 0}, **own})
    application: serve.Application = front.bind(deployed, replicas, dict(arguments))
    return application


def read_all(arguments: Mapping[str, Any]) -> list[Deployed]:
    """Read the archives that the arguments of `build` name.

    Raises:
        ConfigError, ArchiveError: as `build`.
    """
    unknown = sorted(set(arguments) - set(ARGUMENTS))
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown; accepted are {', '.join(ARGUMENTS)}")
    archives = arguments.get("archives") or []
    if isinstance(archives, str) or not archives:
        raise ConfigError(f"archives: expected a list of at least one path, got {archives!r}")
    deployed: list[Deployed] = []
    for each in archives:
        found = read_deployed(str(each), arguments.get("defaults") or {})
        same = [one.hosted.version for one in deployed if one.hosted.name == found.hosted.name]
        if found.hosted.version in same:
            raise ConfigError(f"archives: two are version {found.hosted.version} of the model {found.hosted.name}")
        deployed.append(replace(found, slot=len(same)))
    return deployed


def read_deployed(archive: str, defaults: Mapping[str, int]) -> Deployed:
    """Read an archive's settings on this machine.

    Args:
        archive: PATH, or ALIAS=PATH.
    """
    named = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", archive)
    alias, path = named.groups() if named else ("", archive)
    digest = find_digest(Path(path))
    with unpack_once(Path(path), digest) as opened:
        hosted = Hosted.from_archive(opened, Path(path).name, alias or opened.name, 1, defaults)
    return Deployed(hosted, str(Path(path).resolve()), digest)


def check_models(models: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Check that the options are of models that there are, and known.

    Raises:
        ConfigError: they are not.
    """
    for name, options in models.items():
        if name not in (*names, FRONT, "*"):
            raise ConfigError(f"models: there is no model {name!r}; there are {', '.join(names)}, {FRONT}, and * for all others")
        unknown = sorted(set(options) - set(OPTIONS)) if isinstance(options, Mapping) else [str(options)]
        if unknown:
            raise ConfigError(f"models.{name}: {unknown[0]} is unknown; accepted are {', '.join(OPTIONS)}")
        scaling = options.get("autoscaling_config")
        known = AutoscalingConfig.model_fields
        wrong = sorted(set(scaling) - set(known)) if isinstance(scaling, Mapping) else []
        if wrong:  # Serve would pass over it
            raise ConfigError(f"models.{name}.autoscaling_config: {wrong[0]} is unknown; accepted are {', '.join(sorted(known))}")
    return models


def _bind(deployed: Deployed, options: Mapping[str, Any]) -> serve.Application:
    """Deploy an archive: twice its batch at each replica, one batch at work and one that waits, and the rest at the front."""
    hosted, settings = deployed.hosted, _complete(deployed.hosted, options)
    try:
        deployment = serve.deployment(
            Replica,
            name=deployed.deployment,
            max_ongoing_requests=2 * hosted.batch_size,
            max_queued_requests=hosted.queue_size + hosted.batch_size,  # Serve counts those too that find a replica free
            graceful_shutdown_timeout_s=hosted.response_timeout,
            health_check_timeout_s=30,
        ).options(version=_name_version(deployed), _internal=True, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"models.{hosted.name}: {' '.join(str(error).split())}") from error
    application: serve.Application = deployment.bind(deployed)
    return application


def _name_version(*parts: object) -> str:
    """Name a deployment by what it is made of: Serve restarts those whose name changes, and by itself all at each update."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _complete(hosted: Hosted, options: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the options leave open: one core, a target of autoscaling that keeps batches full, and updates without a gap.

    A GPU may not have room for the new replica beside the old one: there the old one goes first.
    """
    actor = {"num_cpus": 1, **options.get("ray_actor_options", {})}
    complete = {"max_surge_percent": 0 if actor.get("num_gpus") else 100, **options, "ray_actor_options": actor}
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        complete["autoscaling_config"] = {"target_ongoing_requests": max(1.0, 1.5 * hosted.batch_size), **scaling}
    return complete
