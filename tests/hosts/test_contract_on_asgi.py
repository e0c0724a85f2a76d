"""What the contract's live tests ask of TorchServe, asked of the ASGI host: the same tests, with another `live`."""

# ruff: noqa: F403

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from tests.promises.contract.test_contract_live import *
from tests.promises.contract.test_kserve_live import *
from tests.promises.contract.test_live import *
from tests.promises.contract.test_live import CAT, DEMO
from tests.support.processes.waiting import HANG

from camserve.tools.archive.archive import Row, ask, load_service, open_archive
from camserve.tools.serving.asgi_server import AsgiServer

for name in (
    "test_what_is_torchserves_own",
    "test_grpc_carries_predictions",
    "test_a_full_queue_is_a_503_for_who_comes_too_late",
):
    del globals()[name]  # of TorchServe alone; the host's own queue is tested beside this file


def test_options_in_the_query_are_below_the_body_and_above_headers(live: AsgiServer) -> None:
    """And `target` and `top_k` are one choice there too."""
    url = f"{live.url}/explanations/{DEMO}"

    def targets(query: str, fields: dict[str, str] | None = None, **headers: str) -> list[int]:
        files = {"data": ("cat.jpg", CAT)} if fields else None
        answer = requests.post(
            f"{url}?{query}",
            data=fields or CAT,
            files=files,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            timeout=HANG,
        )
        assert answer.status_code == 200, answer.text
        return [each["target"] for each in answer.json()["explanations"]]

    assert targets("target=tabby") == [281]
    assert targets("target=%5B281,3%5D") == [281, 3]
    assert targets("target=281", None, x_explain_target="3") == [281]
    assert targets("target=281", None, x_explain_top_k="2") == [281]
    assert targets("target=281", {"target": "3"}) == [3]
    assert len(targets("target=281", {"top_k": "2"})) == 2
    refused = requests.post(f"{url}?nonsense=1", data=CAT, timeout=HANG)
    assert (refused.status_code, refused.json()["type"]) == (400, "UnknownOption")


@pytest.mark.parametrize(("given", "told"), [("order-4711", True), ("", False), ("two words", False)])
@pytest.mark.parametrize("path", [f"predictions/{DEMO}", "predictions/none", "ping"])
def test_an_answer_tells_the_requests_id_once(live: AsgiServer, path: str, given: str, told: bool) -> None:
    """The client's, and else one that was made. (Ray Serve echoes what can be no id beside it.)"""
    headers = {"x-request-id": given} if given else {}
    answer = requests.request("GET" if path == "ping" else "POST", f"{live.url}/{path}", headers=headers, timeout=HANG)
    ids = [each for each in answer.raw.headers.getlist("x-request-id") if each != "two words"]
    assert len(ids) == 1
    assert (ids[0] == given) is told


def test_kserves_client_finds_server_and_model_ready(client: dict[str, Any]) -> None:
    """By V1 and by V2."""
    assert client["health"] == {"answer": [True] * 5}


B64 = base64.b64encode(CAT).decode()
V2 = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [B64]}]}
SAME: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "prediction": ("predictions", CAT, {}),
    "explanation": ("explanations", CAT, {}),
    "targets": ("explanations", CAT, {"x-explain-target": "[281, 3]", "x-explain-method": "layercam"}),
    "overlays": ("explanations", CAT, {"x-explain-top-k": "2", "x-explain-overlay": "true"}),
    "png": ("explanations", CAT, {"accept": "image/png"}),
    "jpeg": ("explanations", CAT, {"accept": "image/jpeg", "x-explain-colormap": "jet"}),
    "npy": ("explanations", CAT, {"accept": "application/x-npy"}),
    "page": ("explanations", b"", {"accept": "text/html"}),
    "json": ("explanations", json.dumps({"data": B64, "target": "tabby"}).encode(), {"content-type": "application/json"}),
    "v1": ("explanations", json.dumps({"instances": [{"data": B64}, B64]}).encode(), {"content-type": "application/json"}),
    "v2": ("explanations", json.dumps(V2).encode(), {"content-type": "application/json"}),
    "no picture": ("explanations", b"no picture", {}),
    "no label": ("explanations", CAT, {"x-explain-target": '"tabbby"'}),
    "not acceptable": ("explanations", CAT, {"accept": "text/csv"}),
}


@pytest.fixture(scope="module")
def torchserves_worker(demo: Path) -> Iterator[Any]:
    """The demo's archive in TorchServe's own worker code, on one thread, as the server's workers are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with open_archive(demo) as opened:
        yield load_service(opened.directory)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SAME)
def test_both_hosts_answer_byte_for_byte_alike(live: AsgiServer, torchserves_worker: Any, name: str) -> None:
    """One request at a time, the memory format recorded by packaging: status, content type, the answer's headers, and body."""
    route, body, headers = SAME[name]
    fields = {} if not body else {"body": json.loads(body) if "content-type" in headers else bytearray(body)}
    (wanted,) = ask(torchserves_worker, [Row(fields, headers, explain=route == "explanations")])
    sent = {"content-type": "", "accept": "*/*", **headers}
    answer = requests.post(f"{live.url}/{route}/{DEMO}", data=body, headers=sent, timeout=HANG)
    assert (answer.status_code, answer.headers["content-type"]) == (wanted.status, wanted.content_type)
    assert {name: answer.headers[name] for name in wanted.headers} == dict(wanted.headers)
    assert answer.content == wanted.body
