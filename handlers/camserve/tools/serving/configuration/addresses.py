"""Reads TorchServe's configuration file, and chooses the addresses that a server takes."""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import camserve
from camserve.core.text import show
from camserve.tools.serving.configuration.properties import parse_properties
from camserve.tools.serving.process.errors import ServeError

LOOPBACK = "127.0.0.1"
HTTP = ("inference_address", "management_address", "metrics_address")
GRPC = ("grpc_inference_port", "grpc_management_port")
OURS = "camserve_"
"""Prefix of the keys in TorchServe's configuration that camserve reads, and TorchServe does not."""
ENVIRONMENT = "TS_"
"""Prefix of the variables that beat the file where `enable_envvars_config=true` stands in it."""
CHOSEN = {*HTTP, *GRPC, "config_file"}
"""Keys that a server writes itself; their variables are not passed on."""

# For a server that is started without a configuration file; config.properties says why.
DEFAULTS = """disable_token_authorization=true
allowed_urls=(?!)
default_workers_per_model=1
job_queue_size=100
max_request_size=33554432
metrics_mode=prometheus
disable_system_metrics=true
"""


@dataclass(frozen=True)
class Settings:
    """A configuration file: its text, TorchServe's keys and values, and camserve's own (`OURS`)."""

    text: str
    values: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(path: Path | None) -> Settings:
        """Reads the file at `path`, or safe defaults for None, and the variables TS_... where it turns them on.

        Raises:
            ServeError: it cannot be read.
        """
        try:
            text = DEFAULTS if path is None else path.read_text(encoding="latin-1")  # as Java reads it
        except OSError as error:
            raise ServeError(f"cannot read the configuration {show(str(path))}: {error.strerror}") from error
        try:
            values = parse_properties(text)
        except ValueError as error:
            raise ServeError(f"cannot read the configuration {show(str(path))}: {error}") from error
        if values.get("enable_envvars_config", "").lower() == "true":
            given = {
                name[len(ENVIRONMENT) :].lower(): value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)
            }
            values.update({name: value for name, value in given.items() if name not in CHOSEN})
        if values.get("service_envelope"):
            raise ServeError(
                f"service_envelope={show(values['service_envelope'])}: remove it; camserve reads KServe's bodies itself, and an "
                "envelope would fail every request"
            )
        own = {key: values.pop(key) for key in list(values) if key.startswith(OURS)}
        return Settings(text, MappingProxyType(values), MappingProxyType(own))

    def is_set(self, key: str) -> bool:
        """Returns whether a key, TorchServe's or camserve's own, is `true`."""
        return (self.own if key.startswith(OURS) else self.values).get(key, "").lower() == "true"


def find_metrics_config(config: Path | None, settings: Settings) -> Path:
    """Finds the file that declares the metrics: that of `settings`, beside the file `config` or from here, or camserve's own."""
    named = settings.values.get("metrics_config")
    if config is None or not named:
        return Path(camserve.__file__).with_name("metrics.yaml")
    beside = config.parent / named
    return (beside if beside.is_file() else Path(named)).resolve()


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: `http` holds (scheme, host, port) of inference, management and metrics; `grpc` the ports
    of gRPC's inference and management on `grpc_host`."""

    http: tuple[tuple[str, str, int], ...]
    grpc_host: str
    grpc: tuple[int, int]

    @staticmethod
    def choose(settings: Settings, port: int | None, public_management: bool = False) -> Addresses:
        """Takes the hosts of `settings`, on `port`, `port + 1` and `port + 2`; 0 picks free ones, None keeps the file's.

        Raises:
            ServeError: an address is taken or cannot be used, or management is beyond loopback without `public_management`.
        """
        asked = [_split(settings, key, 8080 + offset) for offset, key in enumerate(HTTP)]
        if not public_management:
            _refuse_public("management_address", asked[1][1])
            _refuse_public("grpc_management_address", settings.values.get("grpc_management_address", LOOPBACK))
        if port is not None and not 0 <= port <= 65533:
            raise ServeError(f"--port {port} is not from 0 to 65533")
        hosts = [host for _, host, _ in asked]
        if port is None:
            ports = [given for _, _, given in asked]
        else:
            ports = _find_free_row(hosts) if port == 0 else [port, port + 1, port + 2]
        for host, taken in zip(hosts, ports, strict=True):
            _bind(host, taken).close()
        http = tuple((scheme, host, number) for (scheme, host, _), number in zip(asked, ports, strict=True))
        grpc_host = settings.values.get("grpc_inference_address", LOOPBACK)
        return Addresses(http, grpc_host, _find_free_pair(grpc_host))

    def url(self, index: int) -> str:
        """Returns the URL of inference (0), management (1) or metrics (2), as a client on this machine uses it."""
        scheme, host, port = self.http[index]
        reachable = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
        return f"{scheme}://{_bracketed(reachable)}:{port}"

    def properties(self) -> str:
        """Writes the lines that set these addresses in TorchServe's configuration."""
        http = zip(HTTP, self.http, strict=True)
        lines = [f"{key}={scheme}://{_bracketed(host)}:{port}" for key, (scheme, host, port) in http]
        lines += [f"{key}={port}" for key, port in zip(GRPC, self.grpc, strict=True)]
        return "\n".join(lines) + "\n"


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches `host`, an address or a name."""
    try:
        addresses = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _refuse_public(key: str, host: str) -> None:
    if not is_loopback(host):
        raise ServeError(
            f"{key} is {show(host)}, which is not loopback: whoever reaches management takes models out of service, even with "
            "the model API off. Bind it to 127.0.0.1; where something else keeps others from it, say --public-management"
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _split(settings: Settings, key: str, default: int) -> tuple[str, str, int]:
    address = settings.values.get(key, f"http://{LOOPBACK}:{default}").strip()
    try:
        parts = urlsplit(address)
        scheme, host, port = parts.scheme, parts.hostname, parts.port or default
    except ValueError:
        scheme, host, port = "", None, 0
    accepted = ("http", "https") if key == "inference_address" else ("http",)
    if scheme not in accepted or not host:
        raise ServeError(f"{key}={show(address)} cannot be used: {' or '.join(accepted)}://HOST:PORT is accepted")
    return scheme, host, port


def _bind(host: str, port: int) -> socket.socket:
    """Binds a socket to `host` and `port`, to see that they are free."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"port {port} on {host} is in use: stop what listens there, or choose another with --port (0 picks a "
                "free one; PORT, PORT+1 and PORT+2 are needed)"
            ) from error
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def _bind_free(host: str) -> socket.socket:
    """Binds a socket to a free port below those of outgoing connections, one of which could take it before Java does."""
    for _ in range(100):
        try:
            return _bind(host, random.randrange(10_000, 32_000))  # noqa: S311 no secret
        except ServeError:
            continue
    return _bind(host, 0)


def _find_free_row(hosts: list[str]) -> list[int]:
    """Finds three consecutive free ports, one for each of `hosts`."""
    for _ in range(100):
        with ExitStack() as held:
            first = held.enter_context(_bind_free(hosts[0])).getsockname()[1]
            try:
                for offset, host in enumerate(hosts[1:], start=1):
                    held.enter_context(_bind(host, first + offset))
            except (ServeError, OverflowError):
                continue
            return [first, first + 1, first + 2]
    raise ServeError("found no three free ports in a row: choose one with --port")


def _find_free_pair(host: str) -> tuple[int, int]:
    with _bind_free(host) as one, _bind_free(host) as two:
        return one.getsockname()[1], two.getsockname()[1]
