"""Runs a TorchServe, from the start of Java to the end of the last worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from camserve.core.text import show
from camserve.tools.serving.base import BaseServer, Sinks
from camserve.tools.serving.configuration import advice
from camserve.tools.serving.configuration.addresses import Addresses, find_metrics_config
from camserve.tools.serving.configuration.environment import compose_environment
from camserve.tools.serving.configuration.java import compose_command, find_java, read_max_heap
from camserve.tools.serving.configuration.store import select
from camserve.tools.serving.health import faults
from camserve.tools.serving.health.drain import Drain
from camserve.tools.serving.health.management import Management, is_ready
from camserve.tools.serving.health.outage_detector import OutageDetector
from camserve.tools.serving.health.sockets import refuse_connections
from camserve.tools.serving.process.errors import Interrupted, OutageError, ServeError
from camserve.tools.serving.process.folder import temporary_folder
from camserve.tools.serving.process.process import OwnProcess, is_worker

LOG_CONFIGS = {
    "text": Path(__file__).with_name("configuration") / "log4j2.xml",
    "json": Path(__file__).with_name("configuration") / "log4j2-json.xml",
}
REASON_WAIT, REASON_SETTLED = 10.0, 0.5
"""Seconds to wait for the log of a worker that has ended, and after its last line."""
MAX_SILENCE = 600.0
"""Seconds without a usable answer of the management address after which a start is given up: archives are unpacked first."""
OUTAGE_CHECK = 30.0
"""Seconds between two checks of the workers of a running server."""


class Server(BaseServer):
    """TorchServe with archives of a model store. As a context manager it is ready inside, and has ended outside.

    When this process is killed the server is killed too (on Linux: when the thread that made it ends, so make it on one that
    lives as long).

    Args (the others are the base's):
        log_config: log4j2's configuration; None: lines of text.
        max_silence: seconds that `wait_ready` goes without an answer of the management address.
        max_outage: seconds that `wait_stop` goes without a ready worker of a model; None: longer than TorchServe tries.
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
        max_silence: float = MAX_SILENCE,
        max_outage: float | None = None,
        sinks: Sinks = lambda _: ("memory", ()),
    ) -> None:
        super().__init__(model_store, models, config=config, port=port, public_management=public_management, sinks=sinks)
        self._metrics_config = find_metrics_config(self._config, self._settings)
        self._log_config = Path(log_config or LOG_CONFIGS["text"])
        self._max_silence, self._max_outage = max_silence, max_outage
        self._outages = OutageDetector(max_outage)
        self._workers: set[psutil.Process] = set()
        self._late = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Starts TorchServe, without waiting for it, and ends it and removes its folder on leaving."""
        self._archives = select(self._store, self._names)
        java = find_java()
        self._addresses = Addresses.choose(self._settings, self._port, self._public_management)
        self.log_place, sinks = self._sinks(self._addresses.http[0][2])
        with temporary_folder() as folder:
            self._command = compose_command(
                java,
                config=self._write_config(folder),
                vmargs=self._settings.values.get("vmargs", "").split(),
                folder=folder,
                log_config=self._log_config,
                store=self._store,
                models=[archive.argument for archive in self._archives],
            )
            self._management = Management(self.management_url, self._key_file())
            self._process = OwnProcess(
                self._command, compose_environment(self._settings, self._addresses, self._archives, folder), sinks
            )
            try:
                yield
            finally:
                self.stop()

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

    def wait_ready(self) -> None:
        """Returns once every worker of every model has loaded it.

        Raises:
            ServeError: a model does not load, with its worker's reason; or management gives no usable answer for `max_silence`
                seconds.
            Interrupted: a stop was requested.
        """
        answered = time.monotonic()
        while not self._stop.wait(0.1):
            models = self._management.fetch_models()
            self._check_alive()
            answered = time.monotonic() if models is not None else answered
            if time.monotonic() - answered > self._max_silence:
                silence = f"{self.management_url} gave no usable answer for {self._max_silence:g} s"
                raise ServeError(f"{silence}: {self._management.last_error}")
            if self._is_ready(models):
                self._outages.find_outage(models, time.monotonic())
                return
            self._check_workers(models)
        raise Interrupted

    def wait_stop(self) -> None:
        """Returns when a stop is requested.

        Raises:
            ServeError: the server has ended by itself.
            OutageError: a model that was served has been without a ready worker for `max_outage` seconds.
        """
        pause = OUTAGE_CHECK if self._max_outage is None else min(OUTAGE_CHECK, self._max_outage / 4)
        checked = float("-inf")
        while not self._stop.wait(0.2):
            self._check_alive()
            if time.monotonic() - checked > pause:
                self._check_outages()
                checked = time.monotonic()

    def max_heap(self) -> int:
        """Asks a Java of the same options to how many bytes its heap may grow; 0 when it does not say."""
        return read_max_heap(self._command)

    def memory_warnings(self, heap: int) -> list[str]:
        """Warns where the queues of the running server, full of photographs, exceed a heap of so many bytes."""
        return advice.warn_of_memory(self._management.fetch_models() or (), heap)

    def stop(self, drain: float = 0) -> bool:
        """Ends Java and every worker; returns whether all requests had finished.

        Requests are let finish for up to `drain` seconds, without new connections where the system permits refusing them.
        """
        drained = False
        if drain > 0 and not self._process.ended:
            port, management = (self._addresses.http[index][2] for index in (0, 1))
            if port != management:
                refuse_connections(self._process.pid, port)
            server = Drain(self._management, self._process.pid, port, lambda: self._process.ended)
            drained = server.wait(drain, self._stop_now)
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
        return all(is_ready(model) for model in models)

    def _check_alive(self) -> None:
        if self._process.ended:
            raise ServeError(f"TorchServe ended by itself: {self._last(6)}")

    def _check_outages(self) -> None:
        """Raises for a model that TorchServe has given up, which is served again only after a restart."""
        outage = self._outages.find_outage(self._management.fetch_models(), time.monotonic())
        if outage:
            name, seconds = outage
            why = faults.find_reason(self.lines, name) or self._last(4)
            raise OutageError(f"the model {show(name)} has had no ready worker for {seconds:.0f} s, and requests wait: {why}")

    def _check_workers(self, models: list[dict[str, Any]] | None) -> None:
        """Raises where a worker has ended before it was ready: its model does not load, but TorchServe would try for minutes."""
        now = {child for child in self._process.children(recursive=False) if is_worker(child)}
        ended, self._workers = self._workers - now, now
        if not ended:
            return
        waiting = [model["modelName"] for model in models or [] if not is_ready(model)]
        names = waiting or [archive.name for archive in self._archives]
        reason = self._wait_reason(names)
        if reason:
            raise ServeError(f"the model {show(reason[0])} does not load: {reason[1]}")
        if self._late + len(ended) <= len(faults.find_late_workers(self.lines)):
            self._late += len(ended)  # TorchServe starts them again, and its log says so
            return
        raise ServeError(f"the model {show(names[0])} does not load: its worker ended and gave no reason: {self._last(4)}")

    def _wait_reason(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Returns the first of these models whose worker said why it ended, and why.

        Waits until the log adds nothing to it, which on a busy machine takes seconds.
        """
        reason, since, end = None, time.monotonic(), time.monotonic() + REASON_WAIT
        while time.monotonic() < end and not self._stop.is_set():
            now = next(((name, why) for name in names if (why := faults.find_reason(self.lines, name))), None)
            if now != reason:
                reason, since = now, time.monotonic()
            elif reason and time.monotonic() - since > REASON_SETTLED:
                break
            time.sleep(0.1)
        return reason

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
