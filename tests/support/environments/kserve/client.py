"""Asks a server with KServe's own client, in an environment of its own: `client.py < JSON`, the answers as JSON to stdout.

Input: `{"url", "model", "pictures": [base64, ...], "tensors": [n][3][H][W]}`. Output: by the name of each call `{"answer"}`, or
`{"status", "error"}`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


class Asker:
    """The calls; each method's name is that of its answer."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.url, self.model = given["url"], given["model"]
        self.texts = given["pictures"]
        self.files = [base64.b64decode(text) for text in self.texts]
        self.tensors = np.array(given["tensors"], dtype=np.float32)
        self.v1, self.v2 = (InferenceRESTClient(RESTConfig(protocol=name, timeout=120)) for name in ("v1", "v2"))

    async def v1_predict(self) -> Any:
        """Every way to write an instance."""
        first, second, *_ = self.texts
        instances = [{"b64": first}, {"data": second}, f"data:image/jpeg;base64,{first}", self.tensors[0].tolist()]
        return await self.v1.infer(self.url, {"instances": instances}, model_name=self.model)

    async def v1_explain(self) -> Any:
        """Two instances with options of their own."""
        first, second, *_ = self.texts
        instances = [{"data": first, "target": [1, 0], "method": "gradcam"}, {"b64": second, "top_k": 2}]
        return await self.v1.explain(self.url, model_name=self.model, data={"instances": instances})

    async def v1_bad(self) -> Any:
        """The second instance is no picture."""
        return await self.v1.explain(self.url, model_name=self.model, data={"instances": [self.texts[0], "AAAA"]})

    async def v2_json(self) -> Any:
        """Base64 in JSON."""
        return self._told(await self._infer(self._bytes(self.texts)))

    async def v2_binary(self) -> Any:
        """The files themselves after the JSON, and the outputs after theirs."""
        tensor = InferInput("image", [len(self.files)], "BYTES")
        tensor.set_data_from_numpy(np.array(self.files, dtype=np.object_), binary_data=True)
        outputs = [RequestedOutput(name, {"binary_data": True}) for name in ("probability", "label", "index")]
        return self._told(await self._infer(tensor, request_outputs=outputs))

    async def v2_tensor(self) -> Any:
        """FP32 after the JSON."""
        tensor = InferInput("image", list(self.tensors.shape), "FP32")
        tensor.set_data_from_numpy(self.tensors, binary_data=True)
        return self._told(await self._infer(tensor, parameters={"binary_data_output": True}))

    async def v2_explain(self) -> Any:
        """The client has no call for it; it posts the same request to any URL."""
        request = InferRequest(self.model, [self._bytes(self.texts)], request_id="7", parameters={"target": "[1, 0]"})
        return await self.v2.infer(f"{self.url}/v2/models/{self.model}/explain", request, is_graph_endpoint=True)

    async def v2_bad(self) -> Any:
        """The second element is no picture."""
        return self._told(await self._infer(self._bytes([self.texts[0], "AAAA"])))

    async def health(self) -> Any:
        """Whether server and model are alive and ready, by both protocols; on a host without these routes an error."""
        return [
            await self.v1.is_server_live(self.url),
            await self.v1.is_model_ready(self.url, self.model),
            await self.v2.is_server_live(self.url),
            await self.v2.is_server_ready(self.url),
            await self.v2.is_model_ready(self.url, self.model),
        ]

    async def together(self) -> Any:
        """All of them at once, three times over; their answers are told as those of the calls alone."""
        names = [name for name in CALLS if name != "together"] * 3
        answers = await asyncio.gather(*(asked(getattr(self, name)) for name in names))
        return [[name, answer] for name, answer in zip(names, answers, strict=True)]

    def _bytes(self, texts: list[str]) -> InferInput:
        return InferInput("image", [len(texts)], "BYTES", data=texts)

    async def _infer(self, tensor: InferInput, **options: Any) -> Any:
        request = InferRequest(self.model, [tensor], request_id="7", **options)
        return await self.v2.infer(self.url, request, model_name=self.model)

    def _told(self, response: Any) -> Any:
        outputs = {each.name: [each.datatype, *_values(each.as_numpy())] for each in response.outputs}
        return {"id": response.id, "model": response.model_name, "outputs": outputs}


def _values(array: Any) -> list[Any]:
    flat = [each.decode() if isinstance(each, bytes) else each for each in array.ravel().tolist()]
    return [list(array.shape), flat]


CALLS = ("v1_predict", "v1_explain", "v1_bad", "v2_json", "v2_binary", "v2_tensor", "v2_explain", "v2_bad", "health", "together")


async def asked(call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """What a call answers, or the status and the text of its error."""
    try:
        return {"answer": await call()}
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "error": error.response.json(), "text": str(error)}


async def main() -> None:
    """Every call in turn."""
    asker = Asker(json.load(sys.stdin))
    async with asker.v1, asker.v2:
        found = {name: await asked(getattr(asker, name)) for name in CALLS}
    json.dump(found, sys.stdout)


asyncio.run(main())
