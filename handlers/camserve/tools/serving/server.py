"""A TorchServe of one's own, from the start of Java to the end of the last worker."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

import camserve
from camserve.core.text import listed, shown
from camserve.tools.serving.configuration import advice
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.cores import cores
from camserve.tools.serving.configuration.java import find_java, largest_heap, server_command
from camserve.tools.serving.configuration.store import Stored, described, select
from camserve.tools.serving.health import faults
from camserve.tools.serving.health.drain import Drain
from camserve.tools.serving.health.management import Management, all_ready
from camserve.tools.serving.health.outages import Outages
from camserve.tools.serving.health.sockets import shut_doors
from camserve.tools.serving.process.errors import Interrupted, OutageError, ServeError
from camserve.tools.serving.process.flag import Flag
from camserve.tools.serving.process.folder import own_folder
from camserve.tools.serving.process.process import OwnProcess, is_worker

CONFIG = Path("config.properties")
LOG_CONFIG = Path(__file__).with_name("configuration") / "log4j2.xml"
METRICS_CONFIG = Path(camserve.__file__).with_name("metrics.yaml")
LATE, SETTLED = 10.0, 0.5
"""Seconds to wait for the words of a worker that has ended, and after the last of them."""
SILENT = 600.0
"""Seconds without a usable answer of the management address after which a start is given up; archives are unpacked before."""
LOOK = 30.0
"""Seconds between two looks at the workers of a server that serves."""
Sinks = Callable[[int], tuple[str, Sequence[Callable[[str], None]]]]


class Server:
    """TorchServe with the archives `models` of `model_store` (all of them for none), on `port` and the two above it.

    `config` is TorchServe's configuration file: by default `config.properties` of the current folder, or safe settings
    where there is none. `port` 0 picks free ports, None takes the configuration's. `sinks` is given the port and returns
    where the log goes, in words, and the functions that take its lines. As a context manager it is ready inside, and
    ended outside, whatever happened; a server whose process is killed is killed with it (Linux), so make it on a thread
    that lives as long as it. `public_management` allows management beyond loopback; `max_silence` and `max_outage` are
    what `wait_ready` and `wait_asked` put up with.
    """

    def __init__(
        self,
        model_store: Path | str | None = None,
        models: Sequence[str] = (),
        *,
        config: Path | str | None = None,
        port: int | None = 0,
        log_config: Path | str | None = None,
        public_management: bool = False,
        max_silence: float = SILENT,
        max_outage: float | None = None,
        sinks: Sinks = lambda _: ("memory", ()),
    ) -> None:
        chosen = Path(config) if config is not None else (CONFIG if CONFIG.is_file() else None)
        self._settings = Settings.read(chosen)
        self._metrics_config = _beside(chosen, self._settings.values.get("metrics_config"))
        self._store = Path(model_store or self._settings.values.get("model_store", "model_store")).resolve()
        self._names = tuple(models)
        self._port = port
        self._log_config = Path(log_config or LOG_CONFIG)
        self._public_management = public_management
        self._max_silence, self._max_outage = max_silence, max_outage
        self._outages = Outages(max_outage)
        self._sinks = sinks
        self._asked, self._hurry = Flag(), Flag()
        self._archives: list[Stored] = []
        self._seen: set[psutil.Process] = set()
        self.log_place = ""

    def __enter__(self) -> Server:
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(self.opened())
        with self._exit:
            self.wait_ready()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Starts TorchServe, without waiting for it, and ends it and removes its folder on leaving."""
        self._archives = select(self._store, self._names)
        java = find_java()
        self._addresses = Addresses.choose(self._settings, self._port, self._public_management)
        self.log_place, sinks = self._sinks(self._addresses.http[0][2])
        with own_folder() as folder:
            self._command = server_command(
                java,
                config=self._write_config(folder),
                vmargs=self._settings.values.get("vmargs", "").split(),
                folder=folder,
                log_config=self._log_config,
                store=self._store,
                models=[archive.argument for archive in self._archives],
            )
            self._management = Management(self.management_url, self._key_file())
            self._process = OwnProcess(self._command, self._environment(folder), sinks)
            try:
                yield
            finally:
                self.stop()

    @property
    def url(self) -> str:
        """Of predictions and explanations."""
        return self._addresses.url(0)

    @property
    def management_url(self) -> str:
        """Of the management address."""
        return self._addresses.url(1)

    @property
    def metrics_url(self) -> str:
        """Of the metrics address."""
        return self._addresses.url(2)

    @property
    def grpc_address(self) -> str:
        """HOST:PORT of gRPC's predictions."""
        return f"{self._addresses.grpc_host}:{self._addresses.grpc[0]}"

    @property
    def pids(self) -> list[int]:
        """Java's process id, then those of the processes that it started and that still run."""
        return [self._process.pid, *sorted(child.pid for child in self._process.children())]

    @property
    def lines(self) -> list[str]:
        """The last lines of the log."""
        return list(self._process.lines)

    @property
    def described(self) -> str:
        """The models, in words."""
        return listed(described(self._archives)).replace(" or ", " and ")

    def ask(self, at_once: bool = False) -> None:
        """Ends `wait_ready` and `wait_asked`, and with `at_once` a drain that goes on; may be called by a signal's handler."""
        self._asked.set()
        if at_once:
            self._hurry.set()

    def wait_ready(self) -> None:
        """Returns once every worker of every model has loaded it.

        Raises `ServeError` with the worker's own reason when a model does not load, or when the management address gives no
        usable answer for `max_silence` seconds; `Interrupted` when asked to stop.
        """
        heard = time.monotonic()
        while not self._asked.wait(0.1):
            models = self._management.models()
            self._check_alive()
            heard = time.monotonic() if models is not None else heard
            if time.monotonic() - heard > self._max_silence:
                silence = f"{self.management_url} gave no usable answer for {self._max_silence:g} s"
                raise ServeError(f"{silence}: {self._management.trouble}")
            if self._is_ready(models):
                self._outages.longest(models, time.monotonic())
                return
            self._check_workers(models)
        raise Interrupted

    def wait_asked(self) -> None:
        """Returns when asked to stop.

        Raises `ServeError` when the server ends by itself; `OutageError` when a model that was served has been without a
        ready worker for `max_outage` seconds (None: longer than TorchServe tries to start one).
        """
        pause = LOOK if self._max_outage is None else min(LOOK, self._max_outage / 4)
        looked = float("-inf")
        while not self._asked.wait(0.2):
            self._check_alive()
            if time.monotonic() - looked > pause:
                self._check_outages()
                looked = time.monotonic()

    def openness(self) -> list[str]:
        """Warnings about who reaches this server."""
        return advice.openness(self._settings, self._addresses)

    def largest_heap(self) -> int:
        """Bytes that Java's heap may grow to, by a Java of the same options; 0 when it does not tell."""
        return largest_heap(self._command)

    def crowding(self, heap: int) -> list[str]:
        """Warnings about what a heap of so many bytes holds, by the queues that a server tells of which is ready."""
        return advice.crowding(self._management.models() or (), heap)

    def stop(self, drain: float = 0) -> bool:
        """Ends Java and every worker, first letting requests finish for up to `drain` seconds, without new connections where the
        system lets us refuse them; whether all had finished."""
        drained = False
        if drain > 0 and not self._process.ended:
            port, management = (self._addresses.http[index][2] for index in (0, 1))
            if port != management:
                shut_doors(self._process.pid, port)
            watch = Drain(self._management, self._process.pid, port, lambda: self._process.ended)
            drained = watch.wait(drain, self._hurry)
        self._process.end()
        self._management.close()
        return drained

    def _is_ready(self, models: list[dict[str, Any]] | None) -> bool:
        if models is None:
            return False
        loaded = {(model["modelName"], model["modelVersion"]) for model in models}
        for archive in self._archives:
            if (archive.name, archive.version) not in loaded:
                raise ServeError(f"TorchServe does not take {archive.file}: {self._last(3)}")
        return all(all_ready(model) for model in models)

    def _check_alive(self) -> None:
        if self._process.ended:
            raise ServeError(f"TorchServe ended by itself: {self._last(6)}")

    def _check_outages(self) -> None:
        """A model that TorchServe has given up is served again only by a new start."""
        found = self._outages.longest(self._management.models(), time.monotonic())
        if found:
            name, seconds = found
            why = faults.reason(self.lines, name) or self._last(4)
            raise OutageError(f"the model {shown(name)} has had no ready worker for {seconds:.0f} s, and requests wait: {why}")

    def _check_workers(self, models: list[dict[str, Any]] | None) -> None:
        """A worker that has ended before it was ready could not load its model: TorchServe would try on for minutes."""
        now = {child for child in self._process.children(recursive=False) if is_worker(child)}
        gone, self._seen = self._seen - now, now
        if not gone:
            return
        waiting = [model["modelName"] for model in models or [] if not all_ready(model)]
        names = waiting or [archive.name for archive in self._archives]
        found = self._reason(names)
        if found:
            raise ServeError(f"the model {shown(found[0])} does not load: {found[1]}")
        raise ServeError(f"the model {shown(names[0])} does not load: its worker ended and gave no reason: {self._last(4)}")

    def _reason(self, names: Sequence[str]) -> tuple[str, str] | None:
        """The first of these models whose worker said why it ended, and why: once no more lines of it come, which on a busy
        machine takes seconds."""
        found, since, end = None, time.monotonic(), time.monotonic() + LATE
        while time.monotonic() < end and not self._asked.is_set() and not (found and time.monotonic() - since > SETTLED):
            now = next(((name, why) for name in names if (why := faults.reason(self.lines, name))), None)
            if now != found:
                found, since = now, time.monotonic()
            time.sleep(0.1)
        return found

    def _last(self, count: int) -> str:
        lines = [line for line in self.lines if line.strip() and not line.lstrip().startswith(("at ", "..."))]
        return "\n".join(["its last words were", *(f"  {line}" for line in lines[-count:])])

    def _write_config(self, folder: Path) -> Path:
        path = folder / "config.properties"
        lines = f"{self._addresses.properties()}metrics_config={self._metrics_config}\n"
        path.write_text(f"{self._settings.text}\n\n{lines}", encoding="latin-1")
        return path

    def _key_file(self) -> Path | None:
        if self._settings.is_set("disable_token_authorization"):
            return None
        return Path("key_file.json").resolve()

    def _environment(self, folder: Path) -> dict[str, str]:
        dropped = {"PYTHONPATH", "PYTHONHOME", "TS_CONFIG_FILE"}
        dropped |= {"TS_" + line.partition("=")[0].upper() for line in self._addresses.properties().split()}
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self._workers())))
        return environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))

    def _workers(self) -> int:
        """Workers of all models together."""
        default = self._settings.values.get("default_workers_per_model", "0")
        each = int(default) if default.isdigit() and int(default) > 0 else cores()
        return max(1, sum(archive.workers or each for archive in self._archives))


def _beside(config: Path | None, metrics_config: str | None) -> Path:
    """The file that declares the metrics: the configuration's, whose path counts from there or from here, or our own."""
    if config is None or not metrics_config:
        return METRICS_CONFIG
    beside = config.parent / metrics_config
    return (beside if beside.is_file() else Path(metrics_config)).resolve()
