"""Who explains a picture: a running server, or an archive in this process. Both answer with the contract's JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from camserve.labels import Labels
from camserve.tools.archive import Row, ask, load_service, open_archive
from camserve.tools.client import Client, error_of
from camserve.tools.console import ToolError
from camserve.tools.fresh.worker import words


class Asker(Protocol):
    """Explains encoded pictures, from any thread.

    Attributes:
        name: what is asked, as rows and messages name it.
    """

    name: str

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one explanation; raises `CamserveError` where there is none."""


class OverServer:
    """Asks a running server; each thread keeps a connection of its own open."""

    def __init__(self, url: str, model: str | None, token: Callable[[], str] | None, timeout: float) -> None:
        self.name = f"{url.rstrip('/')}{f'/explanations/{model}' if model else ''}"
        self._token = token
        self._timeout = timeout
        self._own = threading.local()
        self._open().close()  # a URL that is none is told at once

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """As `Asker` says."""
        if not hasattr(self._own, "client"):
            self._own.client = self._open()
        client: Client = self._own.client
        return client.ask(picture, None, options)

    def _open(self) -> Client:
        return Client(self.name, self._token, self._timeout)


class InProcess:
    """Asks an archive that is loaded here, on the CPU, one picture at a time."""

    def __init__(self, name: str, service: Any) -> None:
        self.name = name
        self._service = service
        self._turn = threading.Lock()

    @property
    def labels(self) -> Labels | None:
        """The archive's classes; None where its handler is not camserve's."""
        found = getattr(getattr(self._service._entry_point, "__self__", None), "labels", None)
        return found if isinstance(found, Labels) else None

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """As `Asker` says."""
        headers = {f"x-explain-{name.replace('_', '-')}": _text(value) for name, value in options.items()}
        with self._turn:
            (response,) = ask(self._service, [Row({"body": bytearray(picture)}, headers, explain=True)])
        if response.status != 200:
            raise error_of(response.status, response.body)
        answer: dict[str, Any] = json.loads(response.body)
        return answer


@contextmanager
def in_process(archive: Path) -> Iterator[InProcess]:
    """Unpacks and loads an archive, and forgets it afterwards; raises `ToolError` where that cannot be done."""
    with open_archive(archive) as opened:
        try:
            service = load_service(opened.directory)
        except Exception as error:  # the archive's handler may raise anything
            raise ToolError(f"{archive} does not load: {words(error)}") from error
        yield InProcess(f"{opened.name} {opened.version}", service)


def _text(value: Any) -> str:
    """An option's value as a header spells it."""
    return value if isinstance(value, str) else json.dumps(value)
