"""Runs archives on Ray Serve, with the interface of `Server`: on a Ray of its own on this machine, or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from camserve.core.errors import ArchiveError, ConfigError
from camserve.core.text import show
from camserve.hosts.ray import FRONT
from camserve.tools.serving.base import Sinks
from camserve.tools.serving.configuration.addresses import Addresses
from camserve.tools.serving.configuration.cores import count_cores
from camserve.tools.serving.configuration.environment import compose_evidence
from camserve.tools.serving.configuration.own_host import HostSettings, read_number
from camserve.tools.serving.configuration.store import StoredArchive, read_archive, select
from camserve.tools.serving.own_server import OwnServer, bind, logged
from camserve.tools.serving.process.errors import Interrupted, ServeError
from camserve.tools.serving.process.ray_cluster import compose_variables, has_haproxy, lacks_files, start_ray

if TYPE_CHECKING:
    from camserve.hosts.ray.beside import Beside

KEEP_ALIVE = 75
PATIENCE = 180.0
"""Seconds that Ray may take beside what a model takes to load."""
SETTLED = 0.5
"""Seconds after the last answer left a replica, in which a proxy hands it on."""


class RayServer(OwnServer):
    """Ray Serve with archives of a model store.

    Args (the others are the base's):
        archives: files in place of a model store's.
        deployments: options of each model's deployment, by its name, `*` for all others (see `hosts.ray.application`).
    """

    def __init__(
        self,
        model_store: Path | str | None = None,
        models: Sequence[str] = (),
        *,
        archives: Sequence[Path] = (),
        deployments: Mapping[str, Any] | None = None,
        config: Path | str | None = None,
        port: int | None = 0,
        public_management: bool = False,
        max_outage: float | None = None,
        sinks: Sinks = lambda _: ("memory", ()),
    ) -> None:
        super().__init__(
            *(model_store, models),
            config=config,
            port=port,
            public_management=public_management,
            max_outage=max_outage,
            sinks=sinks,
        )
        self._files = archives
        self._deployments = dict(deployments or {})
        self._beside: Beside | None = None
        self._watch: Callable[[], None] = lambda: None
        self._running = False
        self.ray_address = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start Ray and hand over the archives, without waiting for them, and end all on leaving."""
        self._archives = self._select()
        settings = HostSettings.read(self._settings)
        if self._settings.is_set("enable_model_api"):
            raise ServeError("enable_model_api=true: on Ray archives are updated with scripts/serve_ray.py --address; remove it")
        self._addresses = Addresses.choose(self._settings, self._port, self._public_management)
        self.log_place, sinks = self._sinks(self._addresses.http[0][2])
        certificate, key = self._find_certificate()
        with contextlib.ExitStack() as stack:
            management = self._bind_management(stack)
            free = [bind("127.0.0.1", 0) for _ in range(3)]
            ports = [each.getsockname()[1] for each in free]
            for each in free:
                each.close()
            proxied = has_haproxy() and certificate is None and not lacks_files()  # Ray gives HAProxy no certificate
            evidence = compose_evidence(self._settings)

            def compose(folder: Path) -> dict[str, str]:
                return compose_variables(folder, ports, haproxy=proxied) | evidence

            deployments = self._complete()
            start = start_ray(self._count_cores(deployments), compose, gpus=settings.gpus)
            self.ray_address = stack.enter_context(start)
            stack.enter_context(logged(lambda line: self._take(line, sinks)))
            stack.callback(self._end)
            self._deploy(settings, deployments, certificate, key)
            self._watch = lambda: self._start_beside(management, sinks)
            yield

    @property
    def pids(self) -> list[int]:
        """This process's id, then those of replicas and workers."""
        if self._beside is not None and self._running:
            self._beside.refresh()
        return [os.getpid(), *(self._beside.pids() if self._beside is not None else [])]

    @property
    def lines(self) -> list[str]:
        """The last lines of the log."""
        if self._beside is not None and self._running:
            self._beside.refresh()
        return super().lines

    def wait_ready(self) -> None:
        """Return once every model has all its replicas.

        Raises:
            ServeError: a model does not load, with its worker's reason, or Ray has no room for it.
            Interrupted: a stop was requested.
        """
        from camserve.hosts.ray.status import find_failure, is_running  # noqa: PLC0415 an extra brings Ray

        end = time.monotonic() + max(each.hosted.startup_timeout for each in self._deployed) + PATIENCE
        while not self._stop.wait(0.2):
            failure = find_failure()
            if failure is not None:
                raise ServeError(failure)
            if is_running():
                self._watch()
                return
            if time.monotonic() > end:
                raise ServeError("the models are not ready: Ray may lack cores or GPUs for all replicas (ray_actor_options)")
        raise Interrupted

    def wait_stop(self) -> None:
        """Return when a stop is requested.

        Raises:
            ServeError: Ray has ended by itself.
            OutageError: a model has been without a worker for `max_outage` seconds.
        """
        import ray  # noqa: PLC0415 an extra brings it

        beside = self._beside
        if beside is not None and not self._wait_outage(lambda: not ray.is_initialized() or beside.ended(), beside.outages):
            raise ServeError("Ray ended by itself")

    def stop(self, drain: float = 0) -> bool:
        """End the server; return whether all requests had finished within `drain` seconds."""
        drained = drain > 0 and self._running and self._drain(drain)
        self._end()
        return drained

    def exposure_warnings(self) -> list[str]:
        """Warns of who reaches this server, and of the ports of Ray's own."""
        return [
            *super().exposure_warnings(),
            "replicas and HAProxy listen on every address of this machine: keep their ports from others (SECURITY.md)",
            *filter(None, [lacks_files()]),
        ]

    def notes(self) -> list[str]:
        """Says how its archives are updated while it runs."""
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        return [f"to update an archive: RAY_AUTH_TOKEN_PATH={token} scripts/serve_ray.py --address {self.ray_address} ARCHIVE"]

    def _select(self) -> list[StoredArchive]:
        if not self._files:
            return select(self._store, self._names)
        return [replace(read_archive(path), file=str(path.resolve())) for path in self._files]

    def _count_cores(self, deployments: Mapping[str, Any]) -> int:
        """Count what the models' replicas reserve, and as much again: in an update the new ones stand beside the old ones."""
        models = (deployments[each.name] for each in self._archives)
        reserved = sum(_count_most(each) * _read_cores(each) for each in models)
        return 2 * max(count_cores(), math.ceil(reserved)) + 2

    def _deploy(self, settings: HostSettings, deployments: Mapping[str, Any], certificate: str | None, key: str | None) -> None:
        """Start Serve where the configuration says, and hand it the archives."""
        from ray import serve  # noqa: PLC0415 an extra brings it

        from camserve.hosts.ray.application import compose, read_all  # noqa: PLC0415
        from camserve.hosts.ray.model import APPLICATION  # noqa: PLC0415

        _, host, port = self._addresses.http[0]
        arguments: dict[str, Any] = {
            "archives": [f"{each.name}={self._store / each.file}" for each in self._archives],
            "models": deployments,
            "max_request_size": settings.max_request_size,
            "max_held": settings.max_held,
            "cors": dict(settings.cors),
            "allowed_hosts": self._find_allowed()[0],
            "defaults": self._find_defaults(),
        }
        try:
            deployed = read_all(arguments)
            application = compose(deployed, arguments)
        except (ArchiveError, ConfigError) as error:
            raise ServeError(str(error)) from error
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        http = {"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE}
        if certificate:
            http |= {"ssl_certfile": certificate, "ssl_keyfile": key}
        wanted = {name: each.get("num_replicas") for name, each in deployments.items()}
        counts = {name: count if isinstance(count, int) else 1 for name, count in wanted.items()}  # the others change
        self._deployed = [replace(each, hosted=replace(each.hosted, workers=counts[each.hosted.name])) for each in deployed]
        serve.start(proxy_location="HeadOnly", http_options=http)
        self._running = True
        target = serve.RunTarget(application, APPLICATION, "/")
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)

    def _complete(self) -> dict[str, Any]:
        """Give each model the replicas that its archive asks for, and each replica its share of the cores."""
        workers = {
            each.name: each.workers or read_number(self._settings, "default_workers_per_model", 1) for each in self._archives
        }
        complete = {}
        for name, count in workers.items():
            given = dict(self._deployments.get(name, self._deployments.get("*", {})) or {})
            if "autoscaling_config" not in given:
                given.setdefault("num_replicas", count)
            complete[name] = given
        share = max(1, count_cores() // max(1, sum(map(_count_most, complete.values()))))
        threads = int(os.environ.get("OMP_NUM_THREADS") or share)
        for given in complete.values():
            given["ray_actor_options"] = {"num_cpus": threads, **given.get("ray_actor_options", {})}
        complete |= {FRONT: self._deployments[FRONT]} if FRONT in self._deployments else {}
        unknown = sorted(set(self._deployments) - set(workers) - {"*", FRONT})
        if unknown:
            raise ServeError(f"the settings of replicas name {show(unknown[0])}, and the models are {', '.join(workers)}")
        return complete

    def _start_beside(self, management: Sequence[Any], sinks: Sequence[Callable[[str], None]]) -> None:
        from camserve.hosts.ray.beside import Beside  # noqa: PLC0415 an extra brings Ray

        self._beside = Beside(self._deployed, management, self._find_allowed()[1], lambda line: self._take(line, sinks))
        self._beside.start()

    def _drain(self, seconds: float) -> bool:
        """Let the front refuse what comes from now on, and wait until it has answered what it has."""
        from camserve.hosts.ray.status import close_front  # noqa: PLC0415 an extra brings Ray

        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop_now.is_set():
            if close_front() == 0:
                time.sleep(SETTLED)
                return True
            time.sleep(0.1)
        return False

    def _end(self) -> None:
        """End what is beside, then Serve; Ray itself ends with its context."""
        if not self._running:
            return
        self._running = False
        from ray import serve  # noqa: PLC0415 an extra brings it

        if self._beside is not None:
            self._beside.stop()
        serve.shutdown()


def _count_most(options: Mapping[str, Any]) -> int:
    """Count the replicas that a model may have; 1 where Serve's own choice is asked for."""
    scaling = options.get("autoscaling_config")
    wanted = scaling.get("max_replicas") if isinstance(scaling, Mapping) else options.get("num_replicas")
    return wanted if isinstance(wanted, int) else 1


def _read_cores(options: Mapping[str, Any]) -> float:
    """Read how many cores each replica reserves; 1 for what Ray will refuse."""
    wanted = options["ray_actor_options"].get("num_cpus")
    return wanted if isinstance(wanted, (int, float)) else 1


def read_deployments(path: Path) -> dict[str, Any]:
    """Read the options of models' deployments: a YAML file with a mapping for each model, `*` for all others.

    Raises:
        ServeError: it cannot be read, or is none.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ServeError(f"cannot read {show(str(path))}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ServeError(f"{show(str(path))}: expected a mapping for each model, such as `cats: {{num_replicas: 2}}`")
    return {str(name): each for name, each in found.items()}
