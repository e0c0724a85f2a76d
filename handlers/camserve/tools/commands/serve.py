"""Serves the archives of a model store: starts TorchServe, says when it is ready, and ends it without losing a request."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from camserve.core.errors import require
from camserve.tools.console import Progress, ToolError, command_of, unfailing
from camserve.tools.serving.base import CONFIG, BaseServer
from camserve.tools.serving.process.errors import Interrupted, OutageError
from camserve.tools.serving.process.log import as_json, open_log, open_log_file, write_line
from camserve.tools.serving.server import LOG_CONFIGS, MAX_SILENCE, Server

__all__ = ["Server", "main", "parser"]

DESCRIPTION = """
Serves the archives of a model store with TorchServe, in the foreground. Prints `ready URL` on standard output once every
worker has loaded its model. Management and metrics are on PORT+1 and PORT+2. Ctrl-C or SIGTERM ends it after the requests
in flight and in the queue are answered. New connections are refused meanwhile where the system lets us do that (not in most
containers); requests that arrive all the same are answered too, and prolong that, up to --drain seconds. A second signal ends
it at once. A signal that is ignored when it starts (SIGHUP under nohup) stays ignored.
"""
EPILOG = """
environment: OMP_NUM_THREADS, threads of each worker (default: cores divided by the workers of all models); JAVA_HOME, where
Java is. PYTHONPATH is not passed on, so that each archive runs its own code.
exit status: 0 after a stop in which every request was answered, 1 when a model does not load or stays without a worker
(--max-outage), the server ends by itself, or the time of --drain ran out, 128 + the signal's number after a second signal or
one before the server was ready.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    command = argparse.ArgumentParser(prog=command_of("serve"), allow_abbrev=False, description=DESCRIPTION, epilog=EPILOG)
    add = command.add_argument_group("what is served").add_argument
    add("--models", nargs="+", default=[], metavar="NAME", help="NAME, NAME.mar or ALIAS=NAME.mar (default: every archive)")
    add("--model-store", type=Path, metavar="DIR", help="folder of the archives (default: the configuration's, or model_store)")
    add = command.add_argument_group("where").add_argument
    hosts = "torchserve; asgi: our own server, without Java and TorchServe; ray: replicas on Ray Serve (default: torchserve)"
    add("--host", choices=("torchserve", "asgi", "ray"), default="torchserve", help=hosts)
    add("--port", type=int, help="port of the inference address; 0 picks free ports (default: the configuration's, or 8080)")
    add("--config", type=Path, metavar="FILE", help=f"TorchServe's configuration (default: {CONFIG}, where there is one)")
    add("--public-management", action="store_true", help="let the configuration bind management beyond loopback")
    add = command.add_argument_group("on Ray (--host ray)").add_argument
    add("archives", nargs="*", type=Path, metavar="ARCHIVE", help="archives' files, in place of a model store")
    replicas = "YAML with the options of each model's deployment, by Ray Serve's names; `*` is all others (docs/how-to/move.md)"
    add("--replicas", type=Path, metavar="FILE", help=replicas)
    address = (
        "a Ray cluster, or `auto`: put the archives there in the place of those of the same name, and return when they serve"
    )
    add("--address", metavar="HOST:PORT", help=address)
    add("--end", action="store_true", help="with --address: answer what is in flight, refuse the rest, and end the application")
    add = command.add_argument_group("how long it waits").add_argument
    add("--drain", type=_seconds, default=30.0, metavar="SECONDS", help="longest wait for requests when stopping (default: 30)")
    silence = f"torchserve: while models load, longest time without an answer of management (default: {MAX_SILENCE:g})"
    add("--max-silence", type=_seconds, default=MAX_SILENCE, metavar="SECONDS", help=silence)
    outage = "then, longest time that a model may be without a ready worker (default: longer than TorchServe tries to start one)"
    add("--max-outage", type=_seconds, metavar="SECONDS", help=outage)
    add = command.add_argument_group("its log").add_argument
    add("--verbose", action="store_true", help="TorchServe's log to standard error too")
    add("--log-dir", default="logs", metavar="DIR", help="where TorchServe's log goes; - is standard output (default: logs)")
    add("--log-format", choices=("text", "json"), default="text", help="json: an object a line, all on standard output")
    add("--log-config", type=Path, metavar="FILE", help="a log4j2 configuration in place of the built-in one")
    return command


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, 0 or more")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; returns the exit status (see `--help`)."""
    options = parser().parse_args(argv)
    log = open_log(options.log_format)
    signals: list[int] = []
    try:
        if options.address or options.end:
            _manage_cluster(options, log)
            return 0
        server = _server(options)
        with _signals(signals, server), server.running():
            return _serve(server, options, signals, log)
    except Interrupted:
        return 128 + signals[0]
    except ToolError as error:
        log.error(error)
        return 1


def _server(options: argparse.Namespace) -> BaseServer:
    common: dict[str, Any] = {
        "config": options.config,
        "port": options.port,
        "public_management": options.public_management,
        "max_outage": options.max_outage,
        "sinks": lambda port: _sinks(options, port),
    }
    if options.host != "ray" and (options.archives or options.replicas):
        raise ToolError("ARCHIVE and --replicas are of --host ray; other hosts take --models, and minWorkers of each archive")
    if options.host == "torchserve":
        require("serving with TorchServe", "serve")
        own = {"log_config": options.log_config or LOG_CONFIGS[options.log_format], "max_silence": options.max_silence}
        return Server(options.model_store, options.models, **common, **own)
    if options.log_config:
        raise ToolError("--log-config is TorchServe's; other hosts write their log as --log-dir and --log-format say")
    if options.host == "ray":
        return _ray_server(options, common)
    require("serve --host asgi", "asgi")
    from camserve.tools.serving.asgi_server import AsgiServer  # noqa: PLC0415 an extra brings what it needs

    return AsgiServer(options.model_store, options.models, **common)


def _ray_server(options: argparse.Namespace, common: dict[str, Any]) -> BaseServer:
    require("serve --host ray", "ray")
    from camserve.tools.serving.ray_server import RayServer, read_deployments  # noqa: PLC0415 an extra brings what it needs

    deployments = read_deployments(options.replicas) if options.replicas else None
    return RayServer(options.model_store, options.models, archives=options.archives, deployments=deployments, **common)


def _manage_cluster(options: argparse.Namespace, log: logging.Logger) -> None:
    """Updates or ends what runs on a cluster.

    Raises:
        ToolError: that cannot be done.
    """
    if options.host != "ray" or not options.address or bool(options.archives) == options.end:
        raise ToolError("--address is of --host ray, and wants either archives to serve there, or --end")
    require("serve --host ray", "ray")
    from camserve.tools.serving.process.ray_update import end_application, update_cluster  # noqa: PLC0415 an extra brings it
    from camserve.tools.serving.ray_server import read_deployments  # noqa: PLC0415

    if options.end:
        end_application(options.address, options.drain)
        log.info("the application has ended")
        return
    update_cluster(options.address, options.archives, read_deployments(options.replicas) if options.replicas else None)
    log.info("the new replicas serve")


def _sinks(options: argparse.Namespace, port: int) -> tuple[str, list[Callable[[str], None]]]:
    """Returns where the log of the server on `port` goes: in words, and as functions that take a line."""
    echo: list[Callable[[str], None]] = [lambda line: write_line(line, sys.stderr)] if options.verbose else []
    if options.log_format == "json":
        return "standard output", [lambda line: write_line(as_json(line)), *echo]
    if options.log_dir == "-":
        return "standard output", [write_line, *echo]
    path = Path(options.log_dir, f"serve-{port}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ToolError(f"cannot write the log {path}: {error.strerror}; choose another folder with --log-dir") from error
    return str(path), [open_log_file(path), *echo]


def _serve(server: BaseServer, options: argparse.Namespace, signals: list[int], log: logging.Logger) -> int:
    host = {"torchserve": "TorchServe", "asgi": "the ASGI host", "ray": "Ray Serve"}[options.host]
    log.info(f"starting {host} with {server.models}, which takes ten seconds or more; its log: {server.log_place}")
    for warning in server.exposure_warnings():
        log.warning(warning)
    for note in server.notes():
        log.info(note)
    with Progress(Console(file=unfailing(sys.stderr), highlight=False, soft_wrap=True)).step("loading"):
        heap = server.max_heap()
        server.wait_ready()
    for warning in server.memory_warnings(heap):
        log.warning(warning)
    if options.log_format == "json":
        log.info("ready", extra={"fields": {"url": server.url}})
    else:
        log.info(f"the inspector, for a browser: {server.pages}")
        write_line(f"ready {server.url}")
    return _stop_when_asked(server, options.drain, signals, log)


def _stop_when_asked(server: BaseServer, drain: float, signals: list[int], log: logging.Logger) -> int:
    try:
        server.wait_stop()
    except OutageError as outage:
        log.error(outage)
        server.stop(drain)  # other models have requests in flight
        return 1
    log.info(f"stopping: requests in flight are finished first, in at most {drain:g} s; once more stops at once")
    drained = server.stop(drain)
    if drained or drain == 0:
        log.info("stopped")
        return 0
    if len(signals) > 1:
        return 128 + signals[-1]
    log.error(f"stopped before every request was answered: --drain gave {drain:g} s")
    return 1


@contextmanager
def _signals(received: list[int], server: BaseServer) -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP ask the server to stop, the second one at once; those that are ignored stay so."""

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        server.request_stop(at_once=len(received) > 1)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before: list[Any] = [signal.signal(number, note) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
