"""The application that a server of the ASGI standard runs: the contract's routes, over the models."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Any

from camserve.hosts.asgi.client import Base, Client, Model, Room, find
from camserve.hosts.asgi.fields import read_fields
from camserve.hosts.asgi.health import Health
from camserve.hosts.asgi.query import add_query
from camserve.hosts.worker import HostError

NAME, VERSION = r"(?P<name>[^/:]+)", r"(?:/{}(?P<version>[^/:]+))?"
ASKED = (
    (re.compile(f"/predictions/{NAME}{VERSION.format('')}"), False),
    (re.compile(f"/explanations/{NAME}{VERSION.format('')}"), True),
    (re.compile(f"/v1/models/{NAME}:predict"), False),
    (re.compile(f"/v1/models/{NAME}:explain"), True),
    (re.compile(f"/v2/models/{NAME}{VERSION.format('versions/')}/infer"), False),
    (re.compile(f"/v2/models/{NAME}{VERSION.format('versions/')}/explain"), True),
)
"""The routes of predictions and explanations, and whether they explain."""

METHODS = ("POST", "PUT", "GET", "HEAD")
OURS = ("explain", "describe")
"""Headers that only a host may send."""
MAX_HELD = 2**30


def find_route(path: str) -> tuple[re.Match[str], bool] | None:
    """Return what a path names of a model, `name` and perhaps `version`, and whether it explains; None: it is no such path.

    As in TorchServe's frontend, slashes at the end say nothing.
    """
    matches = ((pattern.fullmatch(path.rstrip("/")), explains) for pattern, explains in ASKED)
    return next(((match, explains) for match, explains in matches if match), None)


class App(Base):
    """Predictions, explanations, the page and health.

    Args:
        models: each model and version; of the versions of one name the first is the default.
        max_request_size: bytes of a body.
        max_held: bytes of all bodies that are in memory at once.
    """

    def __init__(self, models: Sequence[Model], max_request_size: int, max_held: int = MAX_HELD) -> None:
        self._models = models
        self._health = Health(models)
        self._limit = max_request_size
        self.room = Room(max_held)

    async def answer(self, client: Client) -> None:
        """Answer a request of a client."""
        route = find_route(client.path)
        if route is None:
            await self._health.answer(client)
        else:
            await self._answer_model(client, route[0]["name"], route[0].groupdict().get("version"), route[1])

    async def _answer_model(self, client: Client, name: str, version: str | None, explains: bool) -> None:
        find(self._models, name, version)
        if client.method not in METHODS:  # a GET has no picture, but may be a browser's
            message = f"{client.method} is not allowed here; send the picture with POST"
            raise HostError(405, "MethodNotAllowedException", message, allowed=", ".join(METHODS))
        try:
            body = await client.read(self._limit, self.room)
            kind = client.headers.get("content-type", "")
            fields, types = read_fields(body, kind, explains) if body else ({}, {})
            own = {name: value for name, value in client.headers.items() if name not in OURS}
            headers: dict[str, Any] = {**types, **own, "x-request-id": client.id, "explain": str(explains)}
            if explains:
                headers = add_query(headers, client.query)
            model = find(self._models, name, version)  # it may have been replaced while the body came
            status, content_type, more, answer = await _unless_gone(client, model.answer((fields, headers)))
        finally:
            self.room.used -= client.held
        await client.reply(status, content_type, answer, more)


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
