"""Sources of answers: a running server, or an archive in this process. Both explain a picture with the contract's JSON."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import requests

from camserve.core.errors import require
from camserve.core.labels import Labels
from camserve.core.text import in_one_line, join_names
from camserve.tools.archive.archive import Archive, Row, ask, digest_archive, face_of, load_service, open_archive
from camserve.tools.client.client import CamserveError, Client, read_error, read_url
from camserve.tools.client.request import write_headers
from camserve.tools.client.token import explain_refusal
from camserve.tools.console import ToolError, command_of
from camserve.tools.watching.endpoints import Endpoints


class AnswerSource(Protocol):
    """Explains encoded pictures, from any thread.

    Attributes:
        name: what is asked, as rows and messages name it; it holds no secrets.
        identity: what tells this model and its settings from others, by names that a row may have too; None: only an answer
            tells.
    """

    name: str
    identity: Mapping[str, str] | None

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """Asks for one explanation; raises `CamserveError` where there is no answer."""


class ServerSource:
    """Asks a running server; each thread keeps a connection of its own open.

    Raises:
        ToolError: the URL cannot be used, or it and `model` both name a model, or neither does and the server has several.
    """

    def __init__(self, url: str, model: str | None, token: Callable[[], str] | None, timeout: float) -> None:
        try:
            root, named = read_url(url)
        except ValueError as error:
            raise ToolError(str(error)) from None
        if named and model:
            raise ToolError(f"--model {model}: the URL names a model already, {named}; leave one of them out")
        self.identity: Mapping[str, str] | None = None
        self.name = f"{root}/explanations/{quote(model or named or _only_model(root, token), safe='/')}"
        self._token = token
        self._timeout = timeout
        self._own = threading.local()

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """Asks as `AnswerSource` says."""
        if not hasattr(self._own, "client"):
            self._own.client = Client(self.name, self._token, self._timeout)
        client: Client = self._own.client
        try:
            return client.ask(picture, None, options)
        except CamserveError as error:
            mend = explain_refusal(error.status, error.type, self._token is not None)
            if mend is None:
                raise
            raise CamserveError(error.status, error.type, mend) from None


def list_models(root: str, token: Callable[[], str] | None) -> list[str]:
    """Return the names of the models that a server has, as it says to whoever may ask; none where nobody answers.

    The ASGI host says it at the same address, TorchServe at its management address, one port above.
    """
    headers = {"Authorization": f"Bearer {token()}"} if token else {}
    management = Endpoints.of(root, None, None).management
    for url, sent in ((f"{root}/v1/models", headers), (f"{management}/models?limit=1000", None)):
        with suppress(requests.RequestException, ValueError, LookupError, TypeError):
            models = requests.get(url, headers=sent, timeout=5).json()["models"]
            return [each if isinstance(each, str) else str(each["modelName"]) for each in models]
    return []


def _only_model(root: str, token: Callable[[], str] | None) -> str:
    names = list_models(root, token)
    if len(names) == 1:
        return names[0]
    served = f": it serves {join_names(names, 10)}" if names else ""
    raise ToolError(f"which model? Give --model NAME, or a URL that ends in /explanations/MODEL{served}")


class ArchiveSource:
    """Asks an archive that is loaded here, on the CPU, one picture at a time; `labels` are its classes.

    Args:
        always: options that hold where a request says nothing else.
    """

    def __init__(
        self, name: str, labels: Labels, service: Any, identity: Mapping[str, str], always: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.identity: Mapping[str, str] | None = identity
        self.labels = labels
        self._service = service
        self._always = always or {}
        self._turn = threading.Lock()

    def ask(self, picture: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
        """Asks as `AnswerSource` says."""
        with self._turn:
            headers = write_headers({**self._always, **options})
            (response,) = ask(self._service, [Row({"body": bytearray(picture)}, headers, explain=True)])
        if response.status != 200:
            raise read_error(response.status, response.body)
        answer: dict[str, Any] = json.loads(response.body)
        return answer


@contextmanager
def open_archive_source(archive: Path, trusted: bool, say: Callable[[str], None]) -> Iterator[ArchiveSource]:
    """Unpacks and loads an archive for the block; `trusted` and `say` are as `load` takes them.

    Raises:
        ToolError: that cannot be done.
    """
    with unpack(archive) as opened:
        yield load(archive, opened, trusted, say)


@contextmanager
def unpack(archive: Path) -> Iterator[Archive]:
    """Unpacks an archive for the block; raises `ToolError`, which names the file, where it is not an archive."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_archive(archive))
        except ToolError as error:
            text = str(error)
            raise ToolError(f"{archive}: {text}" if text.startswith("not an archive") else text) from error
        yield opened


def load(archive: Path, opened: Archive, trusted: bool, say: Callable[[str], None], *, checks: bool = True) -> ArchiveSource:
    """Loads an unpacked archive.

    Args:
        trusted: code of the archive's own may run.
        say: is told what the archive holds, and what of it runs, before it does.
        checks: False: heatmaps are not checked, also where the archive asks for that.

    Raises:
        ToolError: it has code of its own and is not trusted, it does not load, or its handler is not camserve's.
    """
    require("an archive in this process", "serve")
    from camserve.tools.archive.trust import review  # noqa: PLC0415 brings torch, which clients do without

    review(archive, opened, trusted, say)
    digest = digest_archive(opened)  # before its code runs
    try:
        service = load_service(opened.directory)
    except Exception as error:  # the archive's handler may raise anything
        raise ToolError(f"{archive} does not load: {in_one_line(error)}") from error
    face = face_of(service)
    if face is None:
        mend = f"{command_of('package')} --from-archive {shlex.quote(str(archive))}"
        raise ToolError(f"{archive}: its handler is not camserve's; {mend} makes an archive of it that explains")
    identity = {"archive": digest, "weights": face.served.model.weights}
    always = {} if checks or not getattr(face.served.config, "checks", False) else {"check": False}  # older ones know none
    return ArchiveSource(f"{opened.name} {opened.version}", face.served.labels, service, identity, always)
