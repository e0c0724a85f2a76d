"""The second application, for loopback: the models and their workers as TorchServe describes them, and the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from camserve.core.text import show
from camserve.hosts.asgi.changes import Changes
from camserve.hosts.asgi.client import Base, Client, Model, find, not_found
from camserve.hosts.metrics import Registry
from camserve.hosts.worker import HostError

HOST = "camserve"
"""By which tools tell this server from TorchServe."""
MODEL = re.compile(r"/models/(?P<name>[^/]+)(?:/(?P<version>[^/]+))?")
DEFAULT = re.compile(r"/models/(?P<name>[^/]+)/(?P<version>[^/]+)/set-default")


class Management(Base):
    """`/models`, `/models/NAME`, `/metrics`, and changes of the models where they are allowed.

    Args:
        models: each model and version.
        registry: the metrics.
        changes: what changes the models; None: they were chosen when the server started.
    """

    def __init__(self, models: Sequence[Model], registry: Registry, changes: Changes | None = None) -> None:
        self._models = models
        self._registry = registry
        self._changes = changes

    async def answer(self, client: Client) -> None:
        """Answer a request of whoever watches the server."""
        if client.method not in ("GET", "HEAD"):
            await client.reply_json(200, {"status": await self._change(client)})
            return
        path = client.path.rstrip("/")
        match = MODEL.fullmatch(path)
        if path == "/metrics":
            await self._expose(client)
        elif path == "/models":
            models = [{"modelName": each.hosted.name, "modelUrl": each.hosted.file} for each in self._models]
            await client.reply_json(200, {"models": models})
        elif match:
            await client.reply_json(200, await self._describe(match["name"], match["version"], client.query))
        else:
            raise not_found()

    async def _change(self, client: Client) -> str:
        """Change the models as TorchServe does: register, set the default, unregister; say what was done."""
        if self._changes is None:
            message = "the models were chosen when the server started (enable_model_api=true allows changes); only GET is served"
            raise HostError(405, "MethodNotAllowedException", message, allowed="GET, HEAD")
        given = {name: values[-1] for name, values in parse_qs(client.query.decode("latin-1")).items()}
        if client.method == "POST" and client.path == "/models":
            hosted = await self._changes.register(_file_of(given.get("url", "")), given.get("model_name", ""))
            return f'Model "{hosted.name}" Version: {hosted.version} registered with {hosted.workers} initial workers'
        match = DEFAULT.fullmatch(client.path)
        if client.method == "PUT" and match:
            await self._changes.set_default(match["name"], match["version"])
            return f'Default version successfully updated for model "{match["name"]}" to "{match["version"]}"'
        match = MODEL.fullmatch(client.path)
        if client.method == "DELETE" and match:
            await self._changes.unregister(match["name"], match["version"])
            return f'Model "{match["name"]}" unregistered'
        message = "POST /models?url=FILE, PUT /models/NAME/VERSION/set-default and DELETE /models/NAME/VERSION change the models"
        raise HostError(405, "MethodNotAllowedException", message, allowed="GET, HEAD, POST, PUT, DELETE")

    async def _expose(self, client: Client) -> None:
        for each in self._models:
            labels = {"model_name": each.hosted.name, "model_version": each.hosted.version}
            self._registry.set("camserve_host_waiting_requests", labels, await each.count_waiting())
        names = parse_qs(client.query.decode("latin-1")).get("name[]", [])
        await client.reply(200, "text/plain; version=0.0.4; charset=utf-8", self._registry.expose(names).encode())

    async def _describe(self, name: str, version: str | None, query: bytes) -> list[dict[str, Any]]:
        found = find(self._models, name, None if version == "all" else version)
        wanted = [each for each in self._models if each.hosted.name == name] if version == "all" else [found]
        customized = parse_qs(query.decode("latin-1")).get("customized") == ["true"]
        return [await _describe(each, customized) for each in wanted]


def _file_of(url: str) -> str:
    """Return the name of a file in the model store.

    Raises:
        HostError: 400, it is something else: no URL is fetched, no path leads out of the store.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", url):
        message = f"url: expected the name of an archive in the model store, such as cats.mar, got {show(url)}"
        raise HostError(400, "BadRequestException", message)
    return url


async def _describe(model: Model, customized: bool) -> dict[str, Any]:
    hosted, waiting = model.hosted, await model.count_waiting()
    described: dict[str, Any] = {
        "modelName": hosted.name,
        "modelVersion": hosted.version,
        "modelUrl": hosted.file,
        "host": HOST,
        "runtime": "python",
        "minWorkers": hosted.workers,
        "maxWorkers": hosted.workers,
        "batchSize": hosted.batch_size,
        "maxBatchDelay": hosted.batch_delay,
        "responseTimeout": hosted.response_timeout,
        "loadedAtStartup": True,
        "workers": await model.describe_workers(),
        "jobQueueStatus": {
            "remainingCapacity": hosted.queue_size - waiting,
            "pendingRequests": waiting,
        },
    }
    if customized:
        described["customizedMetadata"] = json.loads(await model.describe() or b"null")
    return described
