"""Bounds a whole call in time: connecting, sending, waiting for a full queue and reading the answer, however slowly it comes."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection


class Deadline:
    """A time by which a call must have ended; None: it may take for ever."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None or seconds > threading.TIMEOUT_MAX else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, never below a millisecond: what waits on a socket takes 0 for no wait at all."""
        return None if self._end is None else max(0.001, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Returns whether so many seconds may still be waited."""
        return self._end is None or time.monotonic() + seconds < self._end

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return not self.allows(0)


class Wire(HTTPAdapter):
    """Carries the requests of one session. A socket's own timeout starts again with every byte; this cuts the connection."""

    def __init__(self) -> None:
        self._opened: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Makes the pool of connections."""
        super().init_poolmanager(*arguments, **keywords)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **keywords: Any) -> Any:
        """Makes the pool of connections to a proxy."""
        manager = super().proxy_manager_for(*arguments, **keywords)
        self._watch(manager)
        return manager

    @contextmanager
    def cut_at(self, deadline: Deadline) -> Iterator[None]:
        """Shuts this wire's connections down if the block has not ended by then; what waits on one gets an error at once."""
        if deadline.left is None:
            yield
            return
        turn, ended = threading.Lock(), threading.Event()

        def cut() -> None:
            with turn:
                if not ended.is_set():
                    self._shut_down()

        timer = threading.Timer(deadline.left, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            with turn:  # else the next call's connection might be cut
                ended.set()
            timer.cancel()

    def _shut_down(self) -> None:
        for each in list(self._opened):
            with suppress(OSError):  # closed already
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # not TLS's own, after which reading fails in other ways

    def _watch(self, manager: PoolManager) -> None:
        opened = self._opened

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                opened.add(made := super()._new_conn())
                return made

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                opened.add(made := super()._new_conn())  # while hands are shaken
                return made

            def connect(self) -> None:
                super().connect()
                opened.add(self.sock)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
