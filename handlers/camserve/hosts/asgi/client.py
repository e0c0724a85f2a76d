"""One request's two ends, and what both applications do with it: one answer, and no exception past it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast

from camserve.core.errors import RequestError
from camserve.core.messages import REQUEST_ID
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import Answered, Asked, HostError, no_version
from camserve.protocol.accept import check_host

logger = logging.getLogger(__name__)


NAME, VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[^\0\n\v\f\r]*")
"""What a header may be (RFC 9110, section 5)."""
FRAMING = ("content-length", "transfer-encoding")
"""Headers that say where an answer ends: only the host knows."""


@dataclass(frozen=True)
class Limits:
    """What connections may take.

    Attributes:
        connections: open at once.
        head: bytes of a request line with its headers.
        head_seconds, body_seconds: in which a head, and then its body, must have come.
        send_seconds: in which a client that takes nothing must go on to read its answer.
    """

    connections: int = 1000
    head: int = 16384
    head_seconds: float = 30
    body_seconds: float = 300
    send_seconds: float = 60


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Room:
    """Bytes of bodies that are in memory at once: being received, waiting, or with a worker."""

    most: int
    used: int = 0

    def take(self, size: int) -> None:
        """Count bytes as used.

        Raises:
            HostError: 503, there is no room for them.
        """
        if self.used + size > self.most:
            raise HostError(
                503, "QueueFull", f"the requests that wait fill {self.most} bytes (camserve_max_held_bytes); try again later"
            )
        self.used += size


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
        """Return how many workers have the model loaded, and how many should."""

    async def count_waiting(self) -> int:
        """Return how many requests wait for a worker."""

    async def describe_workers(self) -> list[dict[str, object]]:
        """Describe the workers, as TorchServe's management address does."""


def find(models: Sequence[Model], name: str, version: str | None) -> Model:
    """Return a model; of its versions the first where none is named.

    Raises:
        HostError: 404.
    """
    named = [each for each in models if each.hosted.name == name]
    found = next((each for each in named if version in (None, each.hosted.version)), None)
    if found is None:
        raise no_version(name, version) if named else HostError(404, "ModelNotFoundException", f"Model not found: {name}")
    return found


class Client:
    """One request's ends: what came, and how to answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = cast(bytes, scope.get("query_string", b""))
        self.headers = _read_headers(scope["headers"])
        given = self.headers.get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else _make_id()
        self.more_headers: dict[str, str] = {}
        self.held = 0
        self._receive, self._send = receive, send

    async def read(self, limit: int, room: Room) -> bytes:
        """Return the body, and count it in `room` and in `held`, also where it is not read to its end.

        Raises:
            HostError: 413, it is larger than `limit` bytes; 503, there is no room.
            ConnectionError: the client went away.
        """
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            chunk = message.get("body", b"")
            room.take(len(chunk))
            self.held += len(chunk)
            if self.held > limit:
                raise _too_large(limit)
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)

    async def wait_gone(self) -> None:
        """Return when the client has gone; call it once the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer.

        Raises:
            ValueError: a handler has set a status or a header that cannot be sent; nothing was.
        """
        if not 200 <= status < 600:
            raise ValueError(f"an answer's status must be from 200 to 599, got {status}")
        more = {**({"content-type": content_type} if content_type else {}), **self.more_headers, **(headers or {})}
        lines = [(b"content-length", str(len(body)).encode())]
        lines += [_write_header(name, value) for name, value in more.items() if name.lower() not in FRAMING]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def reply_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer in JSON."""
        await self.reply(status, "application/json", write_json(value), headers)


def _write_header(name: str, value: str) -> tuple[bytes, bytes]:
    """Write a header; what Latin-1 lacks becomes `?`, as in TorchServe.

    Raises:
        ValueError: it is none, and would end the connection in place of an answer.
    """
    text = value.strip(" \t")
    if not NAME.fullmatch(name) or not VALUE.fullmatch(text):
        raise ValueError(f"an answer's header cannot be sent: {name!r}: {value!r}")
    return name.lower().encode(), text.encode("latin-1", "replace")


def _make_id() -> str:
    """Make a request's id: it must differ from others, and need not be secret, so no random bytes of the system's are spent."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def write_json(value: object) -> bytes:
    """Write compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def describe_error(status: int, kind: str, message: str) -> dict[str, object]:
    """Give an error the shape that clients know."""
    return {"code": status, "type": kind, "message": message}


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
    """What both applications share.

    Attributes:
        allowed_hosts: names by which it may be asked beside addresses and localhost; None: any.
        limits: on its connections, where the server keeps them.
        adds_id: whether the server itself adds the id of each request to its answer, one that it made where none came.
        cors: headers of every answer, by which pages of another site may read it; none: no such page may.
        closing: whether each answer says that its connection is closed, because the server stops.
    """

    allowed_hosts: Sequence[str] | None = None
    limits = Limits()
    adds_id = False
    cors: Mapping[str, str] = MappingProxyType({})
    closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as the ASGI standard hands it over."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        client = Client(scope, receive, send)
        client.more_headers.update(self.cors)
        if not (self.adds_id and client.headers.get("x-request-id") == client.id):  # an id that is none is added too, beside ours
            client.more_headers["x-request-id"] = client.id
        if self.closing:
            client.more_headers["connection"] = "close"
        try:
            check_host(client.headers, self.allowed_hosts)
            if client.method == "OPTIONS" and self.cors:
                await client.reply(200, "", b"")
                return
            await self.answer(client)
        except (ConnectionError, asyncio.CancelledError):
            return  # the client is gone
        except (HostError, RequestError) as error:
            more = {"allow": error.allowed} if isinstance(error, HostError) and error.allowed else {}
            await client.reply_json(error.status, describe_error(error.status, error.kind, error.message), more)
        except Exception:
            logger.exception("a request failed")
            message = "the server failed on this request; its log says why"
            await client.reply_json(500, describe_error(500, "InternalError", message))

    async def answer(self, client: Client) -> None:
        """Answer a request.

        Raises:
            HostError, RequestError: what the client gets instead.
        """
        raise NotImplementedError


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def not_found() -> HostError:
    """Say that a path is none."""
    return HostError(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")
