"""The second application, for loopback: the models and their workers as TorchServe describes them, and the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from camserve.hosts.asgi.client import Base, Client, Model, not_found
from camserve.hosts.batcher import HostError
from camserve.hosts.metrics import Registry

HOST = "camserve"
"""By which tools tell this server from TorchServe."""
MODEL = re.compile(r"/models/(?P<name>[^/]+)(?:/(?P<version>[^/]+))?")


class Management(Base):
    """`/models`, `/models/NAME`, `/metrics`; it changes nothing.

    Args:
        models: each model and version.
        registry: the metrics.
    """

    def __init__(self, models: Sequence[Model], registry: Registry) -> None:
        self._models = models
        self._registry = registry

    async def answer(self, client: Client) -> None:
        """Answer a request of whoever watches the server."""
        if client.method not in ("GET", "HEAD"):
            message = "models are chosen when the server starts; only GET is served here"
            raise HostError(405, "MethodNotAllowedException", message, allowed="GET, HEAD")
        match = MODEL.fullmatch(client.path)
        if client.path == "/metrics":
            await self._expose(client)
        elif client.path == "/models":
            models = [{"modelName": each.hosted.name, "modelUrl": each.hosted.file} for each in self._models]
            await client.reply_json(200, {"models": models})
        elif match:
            await client.reply_json(200, await self._describe(match["name"], match["version"], client.query))
        else:
            raise not_found()

    async def _expose(self, client: Client) -> None:
        for each in self._models:
            labels = {"model_name": each.hosted.name, "model_version": each.hosted.version}
            self._registry.set("camserve_host_waiting_requests", labels, await each.count_waiting())
        names = parse_qs(client.query.decode("latin-1")).get("name[]", [])
        await client.reply(200, "text/plain; version=0.0.4; charset=utf-8", self._registry.expose(names).encode())

    async def _describe(self, name: str, version: str | None, query: bytes) -> list[dict[str, Any]]:
        named = [each for each in self._models if each.hosted.name == name]
        wanted = [each for each in named if version in ("all", each.hosted.version)] if version else named[:1]
        if not wanted:
            raise HostError(404, "ModelNotFoundException", f"Model not found: {name}")
        customized = parse_qs(query.decode("latin-1")).get("customized") == ["true"]
        return [await _describe(each, customized) for each in wanted]


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
