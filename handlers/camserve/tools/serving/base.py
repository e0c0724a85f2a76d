"""What our servers have in common: which archives, where they listen, and how they are started and stopped."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from camserve.core.text import join_names
from camserve.tools.serving.configuration import advice
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.store import StoredArchive, describe
from camserve.tools.serving.process.signal_flag import SignalFlag

CONFIG = Path("config.properties")
Sinks = Callable[[int], tuple[str, Sequence[Callable[[str], None]]]]
AnyServer = TypeVar("AnyServer", bound="BaseServer")


class BaseServer(abc.ABC):
    """A server with archives of a model store. As a context manager it is ready inside, and has ended outside.

    Args:
        models: which archives; all of the store for none.
        config: TorchServe's configuration file; None: `config.properties` of the current folder, or else safe settings.
        port: of inference; management and metrics are on the two above. 0 picks free ones, None takes the configuration's.
        public_management: allow management beyond loopback.
        sinks: is given the port; returns where the log goes, in words, and the functions that take its lines.
    """

    _addresses: Addresses

    def __init__(
        self,
        model_store: Path | str | None,
        models: Sequence[str],
        *,
        config: Path | str | None,
        port: int | None,
        public_management: bool,
        sinks: Sinks,
    ) -> None:
        self._config = Path(config) if config is not None else (CONFIG if CONFIG.is_file() else None)
        self._settings = Settings.read(self._config)
        self._store = Path(model_store or self._settings.values.get("model_store", "model_store")).resolve()
        self._names = tuple(models)
        self._port = port
        self._public_management = public_management
        self._sinks = sinks
        self._stop, self._stop_now = SignalFlag(), SignalFlag()
        self._archives: list[StoredArchive] = []
        self.log_place = ""

    def __enter__(self: AnyServer) -> AnyServer:
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(self.running())
        with self._exit:
            self.wait_ready()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    @property
    def url(self) -> str:
        """The address of predictions and explanations."""
        return self._addresses.url(0)

    @property
    def management_url(self) -> str:
        """The management address."""
        return self._addresses.url(1)

    @property
    def metrics_url(self) -> str:
        """The metrics address."""
        return self._addresses.url(2)

    @property
    def models(self) -> str:
        """The models, in words."""
        return join_names(describe(self._archives)).replace(" or ", " and ")

    @property
    def pages(self) -> str:
        """The addresses of the models' inspectors, in words."""
        names = dict.fromkeys(archive.name for archive in self._archives)
        return join_names((f"{self.url}/explanations/{name}" for name in names), 3).replace(" or ", " and ")

    def request_stop(self, at_once: bool = False) -> None:
        """Ends `wait_ready` and `wait_stop`, and with `at_once` also a drain; may be called by a signal handler."""
        self._stop.set()
        if at_once:
            self._stop_now.set()

    def exposure_warnings(self) -> list[str]:
        """Warns of who reaches this server."""
        return advice.warn_of_exposure(self._settings, self._addresses)

    def notes(self) -> list[str]:
        """Says what else is good to know once it has started."""
        return []

    @abc.abstractmethod
    def running(self) -> contextlib.AbstractContextManager[None]:
        """Starts the server, without waiting for it, and ends it on leaving."""

    @property
    @abc.abstractmethod
    def pids(self) -> list[int]:
        """The server's process id, then those of its workers."""

    @property
    @abc.abstractmethod
    def lines(self) -> list[str]:
        """The last lines of the log."""

    @abc.abstractmethod
    def wait_ready(self) -> None:
        """Returns once every worker of every model has loaded it.

        Raises:
            ServeError: a model does not load, with its worker's reason.
            Interrupted: a stop was requested.
        """

    @abc.abstractmethod
    def wait_stop(self) -> None:
        """Returns when a stop is requested.

        Raises:
            ServeError: the server has ended by itself.
            OutageError: a model that was served has been without a worker for too long.
        """

    @abc.abstractmethod
    def stop(self, drain: float = 0) -> bool:
        """Ends the server; returns whether all requests had finished within `drain` seconds."""

    def max_heap(self) -> int:
        """Returns to how many bytes a heap that holds waiting requests may grow; 0 where there is none."""
        return 0

    def memory_warnings(self, heap: int) -> list[str]:  # noqa: ARG002 for those that have a heap
        """Warns where the queues of the running server, full of photographs, exceed a heap of so many bytes."""
        return []
