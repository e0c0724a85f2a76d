"""The application that a server of the ASGI standard runs: the contract's routes, over the models."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, unquote

from camserve.core.errors import RequestError
from camserve.hosts.asgi.fields import read_fields
from camserve.hosts.batcher import HostError
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import Answered, Asked
from camserve.protocol.accept import check_host

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

NAME, VERSION = r"(?P<name>[^/:]+)", r"(?:/{}(?P<version>[^/:]+))?"
ASKED = (
    (re.compile(f"/predictions/{NAME}{VERSION.format('')}/?"), False),
    (re.compile(f"/explanations/{NAME}{VERSION.format('')}/?"), True),
    (re.compile(f"/v1/models/{NAME}:predict"), False),
    (re.compile(f"/v1/models/{NAME}:explain"), True),
    (re.compile(f"/v2/models/{NAME}{VERSION.format('versions/')}/infer"), False),
    (re.compile(f"/v2/models/{NAME}{VERSION.format('versions/')}/explain"), True),
)
"""The routes of predictions and explanations, and whether they explain."""

MODEL = re.compile(
    f"/v1/models/{NAME}|/v2/models/{NAME.replace('name', 'second')}{VERSION.format('versions/')}(?P<ready>/ready)?"
)
CHOICE = ("x-explain-target", "x-explain-top-k")
"""Headers of one choice: where the query makes it, neither counts."""


class Model(Protocol):
    """What answers for a model: a `Batcher` of this process, or replicas elsewhere."""

    hosted: Hosted

    async def answer(self, asked: Asked) -> Answered:
        """Return the answer to one request.

        Raises:
            HostError: there is none.
        """

    async def describe(self) -> bytes:
        """Return what the handler says of itself, JSON."""

    async def count_ready(self) -> tuple[int, int]:
        """Return how many workers have the model loaded, and how many must have for the server to be healthy."""

    async def count_waiting(self) -> int:
        """Return how many requests wait for a worker."""

    async def describe_workers(self) -> list[dict[str, object]]:
        """Describe the workers, as TorchServe's management address does."""


class Client:
    """One request's ends: what came, and how to answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = unquote(scope["path"])
        self.query = cast(bytes, scope.get("query_string", b""))
        self.headers = _read_headers(scope["headers"])
        given = self.headers.get("x-request-id", "")
        self.id = given if re.fullmatch(r"[\x21-\x7e]{1,200}", given) else str(uuid.uuid4())
        self._receive, self._send = receive, send

    async def read(self, limit: int) -> bytes:
        """Return the body.

        Raises:
            HostError: 413, it is larger than `limit` bytes; it is not read to its end.
            ConnectionError: the client went away.
        """
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return b"".join(chunks)

    async def wait_gone(self) -> None:
        """Return when the client has gone; call it once the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer."""
        lines = [(b"content-length", str(len(body)).encode()), (b"x-request-id", self.id.encode())]
        if content_type:
            lines.append((b"content-type", content_type.encode("latin-1")))
        lines += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def reply_json(self, status: int, value: object) -> None:
        """Send an answer in JSON."""
        await self.reply(status, "application/json", json.dumps(value, separators=(",", ":")).encode())


def _too_large(limit: int) -> HostError:
    return HostError(413, "RequestTooLarge", f"the request is larger than {limit} bytes (max_request_size)")


def _read_headers(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Join repeated headers with commas, as the standard says; of a repeated content type the last counts."""
    headers: dict[str, str] = {}
    for raw, value in pairs:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        joined = name in headers and name not in ("content-type", "content-length")
        headers[name] = f"{headers[name]}, {text}" if joined else text
    return headers


class Base:
    """What both applications share: one request in, one answer out, and no exception past it.

    Attributes:
        allowed_hosts: names by which it may be asked beside addresses and localhost; None: any.
    """

    allowed_hosts: Sequence[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as the ASGI standard hands it over."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        client = Client(scope, receive, send)
        try:
            check_host(client.headers, self.allowed_hosts)
            await self.answer(client)
        except (ConnectionError, asyncio.CancelledError):
            return  # the client is gone
        except (HostError, RequestError) as error:
            await client.reply_json(error.status, {"code": error.status, "type": error.kind, "message": error.message})
        except Exception:
            logger.exception("a request failed")
            message = "the server failed on this request; its log says why"
            await client.reply_json(500, {"code": 500, "type": "InternalError", "message": message})

    async def answer(self, client: Client) -> None:
        """Answer a request.

        Raises:
            HostError, RequestError: what the client gets instead.
        """
        raise NotImplementedError


class App(Base):
    """Predictions, explanations, the page and health.

    Args:
        models: each model and version; of the versions of one name the first is the default.
        max_request_size: bytes of a body.
    """

    def __init__(self, models: Sequence[Model], max_request_size: int) -> None:
        self._models = models
        self._limit = max_request_size

    async def answer(self, client: Client) -> None:
        """Answer a request of a client."""
        for pattern, explains in ASKED:
            match = pattern.fullmatch(client.path)
            if match:
                await self._answer_model(client, self._find(match["name"], match.groupdict().get("version")), explains)
                return
        await self._answer_health(client)

    def _find(self, name: str, version: str | None) -> Model:
        named = [each for each in self._models if each.hosted.name == name]
        found = next((each for each in named if version in (None, each.hosted.version)), None)
        if found is None:
            what = f"Model not found: {name}" if not named else f"Model version: {version} does not exist for model: {name}"
            kind = "ModelNotFoundException" if not named else "ModelVersionNotFoundException"
            raise HostError(404, kind, what)
        return found

    async def _answer_model(self, client: Client, model: Model, explains: bool) -> None:
        if client.method not in ("POST", "PUT", "GET"):  # a GET has no picture, but may be a browser's
            raise HostError(405, "MethodNotAllowedException", f"{client.method} is not allowed here; send the picture with POST")
        body = await client.read(self._limit)
        fields, types = read_fields(body, client.headers.get("content-type", "")) if body else ({}, {})
        headers: dict[str, Any] = {**types, **client.headers, "explain": str(explains)}
        if explains:
            headers = _with_query(headers, client.query)
        status, content_type, more, answer = await _unless_gone(client, model.answer((fields, headers)))
        await client.reply(status, content_type, answer, more)

    async def _answer_health(self, client: Client) -> None:
        if client.method not in ("GET", "HEAD"):
            raise HostError(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")
        if client.path in ("/ping", "/v2/health/ready"):
            counts = [await each.count_ready() for each in self._models]
            ready = all(count >= wanted for count, wanted in counts)
            await client.reply_json(200 if ready else 503, {"status": "Healthy" if ready else "Unhealthy"})
        elif client.path == "/v2/health/live":
            await client.reply_json(200, {"live": True})
        elif client.path == "/v2":
            await client.reply_json(200, {"name": "camserve", "version": "", "extensions": ["binary_tensor_data"]})
        elif client.path == "/v1/models":
            await client.reply_json(200, {"models": list(dict.fromkeys(each.hosted.name for each in self._models))})
        elif match := MODEL.fullmatch(client.path):
            found = self._find(match["name"] or match["second"], match["version"])
            count, _ = await found.count_ready()
            await client.reply_json(
                200, {"name": found.hosted.name, "ready": count > 0} | ({} if match["name"] else _v2_of(found))
            )
        else:
            raise HostError(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")


def _v2_of(model: Model) -> dict[str, Any]:
    same = [model.hosted.version]
    return {"versions": same, "platform": "pytorch", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}]}


def _with_query(headers: dict[str, Any], query: bytes) -> dict[str, Any]:
    """Let the query's options beat those of headers; the body's beat both, in the archive's parser."""
    options = {f"x-explain-{name.replace('_', '-').lower()}": value for name, value in parse_qsl(query.decode("latin-1"))}
    if not options:
        return headers
    dropped = set(options) | (set(CHOICE) if options.keys() & set(CHOICE) else set())
    return {name: value for name, value in headers.items() if name.lower() not in dropped} | options


async def _unless_gone(client: Client, answer: Awaitable[Any]) -> Any:
    """Wait for an answer; a client that goes away first takes its request with it."""
    asked, gone = asyncio.ensure_future(answer), asyncio.ensure_future(client.wait_gone())
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ConnectionError
        return await asked
    finally:
        gone.cancel()
        asked.cancel()


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
