"""What anybody may ask of the server: whether it lives and is ready, which models there are, and a page that lists them."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from camserve.core.version import __version__
from camserve.hosts.asgi.client import Client, Model, find, not_found
from camserve.hosts.worker import HostError
from camserve.protocol.accept import wants_page

V1 = re.compile(r"/v1/models/(?P<name>[^/:]+)")
V2 = re.compile(r"/v2/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+))?(?P<ready>/ready)?")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>camserve</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.6 system-ui,sans-serif;margin:2rem auto;
max-width:40rem;padding:0 1rem}}</style><h1>Models</h1><p>Each link opens the inspector: drop a picture there.</p><ul>{}</ul>
</html>"""


class Health:
    """Answers what the server is asked about itself.

    Args:
        models: each model and version.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = models
        self._lost: dict[tuple[str, str], float] = {}

    async def answer(self, client: Client) -> None:
        """Answer a question about the server or its models.

        Raises:
            HostError: 404, there is no such route or model; 405, another method than GET or HEAD.
        """
        answered = await self._answer_server(client.path) or await self._answer_model(client.path)
        if answered is None:
            raise not_found()
        if client.method not in ("GET", "HEAD"):
            raise HostError(405, "MethodNotAllowedException", f"{client.method} is not allowed here", allowed="GET, HEAD")
        if client.path == "/" and wants_page(client.headers.get("accept")):
            headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
            await client.reply(200, "text/html; charset=utf-8", _write_page(self._models), headers)
            return
        await client.reply_json(*answered)

    async def _answer_server(self, path: str) -> tuple[int, object] | None:
        if path == "/":
            return 200, {"status": "alive"}  # as KServe's V1
        if path == "/v2":
            return 200, {"name": "camserve", "version": __version__, "extensions": ["binary_tensor_data"]}
        if path == "/v1/models":
            return 200, {"models": list(dict.fromkeys(each.hosted.name for each in self._models))}
        if path == "/v2/health/ready":
            ready = all([(await each.count_ready())[0] for each in self._models])
            return 200 if ready else 503, {"ready": ready}
        if path in ("/ping", "/v2/health/live"):
            lives = all([await self._lives(each) for each in tuple(self._models)])
            said: dict[str, object] = {"status": "Healthy" if lives else "Unhealthy"} if path == "/ping" else {"live": lives}
            return 200 if lives else 503, said
        return None

    async def _lives(self, model: Model) -> bool:
        """Whether a model has a worker, or had one until lately: what is restarted for a worker takes all models with it."""
        key = (model.hosted.name, model.hosted.version)
        if (await model.count_ready())[0]:
            self._lost.pop(key, None)
            return True
        return time.monotonic() - self._lost.setdefault(key, time.monotonic()) < model.hosted.retry_timeout

    async def _answer_model(self, path: str) -> tuple[int, object] | None:
        match = V1.fullmatch(path) or V2.fullmatch(path)
        if match is None:
            return None
        given = match.groupdict()
        found = find(self._models, given["name"], given.get("version"))
        if not path.startswith("/v1/") and not given["ready"]:
            return 200, _v2_of(found, self._models)
        ready = (await found.count_ready())[0] > 0
        return 200 if ready else 503, {"name": found.hosted.name, "ready": ready}


def _v2_of(model: Model, models: Sequence[Model]) -> dict[str, Any]:
    """Describe a model by the Open Inference Protocol: its inputs, and the outputs of `infer`."""
    hosted = model.hosted

    def tensor(name: str, kind: str, *shape: int) -> dict[str, object]:
        return {"name": name, "datatype": kind, "shape": list(shape)}

    return {
        "name": hosted.name,
        "versions": [each.hosted.version for each in models if each.hosted.name == hosted.name],
        "platform": "pytorch",
        "inputs": [tensor("image", "BYTES", -1)],
        "outputs": [tensor("label", "BYTES", -1, -1), tensor("index", "INT64", -1, -1), tensor("probability", "FP32", -1, -1)],
    }


def _write_page(models: Sequence[Model]) -> bytes:
    names = dict.fromkeys(each.hosted.name for each in models)
    links = "".join(f'<li><a href="explanations/{quote(name)}">{html.escape(name)}</a></li>' for name in names)
    return PAGE.format(links).encode()
