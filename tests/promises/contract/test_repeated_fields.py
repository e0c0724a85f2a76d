"""Two pictures in one form are told, never one of them answered in silence: in process, and through TorchServe's frontend."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.support.build import archive, encoded, noise
from tests.support.processes.waiting import HANG

from camserve.protocol.parser import REPEATED, read_call
from camserve.tools.archive.archive import Row, ask, handler_of, load_service
from camserve.tools.commands.serve import Server
from gradcam_handler import adapt_worker

MODEL = "hostile"
SIZES = {"tiny": (1, 1), "small": (8, 8), "photo": (400, 300)}
PICTURES = {name: bytes(encoded(noise(*size, seed=7))) for name, size in SIZES.items()}
TWICE = "the form gives the field 'data' twice; one request takes one picture"


def refused(answer: requests.Response) -> bool:
    """Whether it is the 400 for two pictures."""
    return answer.status_code == 400 and answer.json()["type"] == "NoImage" and answer.json()["message"].startswith(TWICE)


@pytest.mark.live
@pytest.mark.parametrize("route", ["predictions", "explanations"])
@pytest.mark.parametrize("second", SIZES)
@pytest.mark.parametrize("first", SIZES)
def test_two_pictures_in_a_form_are_refused(live: Server, route: str, first: str, second: str) -> None:
    """Whatever their sizes, the same twice too; one of each is answered. Python's requests, with and without a length."""
    forms = [("data", (f"{name}.png", PICTURES[name], "image/png")) for name in (first, second)]
    url = f"{live.url}/{route}/{MODEL}"
    assert refused(requests.post(url, files=forms, timeout=HANG))
    made = requests.Request("POST", url, files=forms).prepare()
    body = made.body if isinstance(made.body, bytes) else b""
    kind = str(made.headers["content-type"])
    chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))
    assert refused(requests.post(url, data=chunks, headers={"content-type": kind}, timeout=HANG))
    for one in forms:
        assert requests.post(url, files=[one], timeout=HANG).status_code == 200


@pytest.mark.live
def test_no_legal_form_is_refused(live: Server) -> None:
    """Long boundaries and file names, further headers, text around the parts, no length, options as fields."""
    url = f"{live.url}/explanations/{MODEL}"
    boundary = "b" * 70
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="{"n" * 3000}.png"\r\nX-Other: {"o" * 3000}\r\n'
    )
    body = (
        head.encode() + b"Content-Type: image/png\r\n\r\n" + PICTURES["tiny"] + f"\r\n--{boundary}--\r\n".encode() + b"e" * 5000
    )
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert requests.post(url, data=body, headers=kind, timeout=HANG).status_code == 200
    options = {"target": "[1, 2]", "method": "gradcam", "overlay": "true"}
    answer = requests.post(url, files={"data": PICTURES["small"]}, data=options, timeout=HANG)
    assert [each["target"] for each in answer.json()["explanations"]] == [1, 2]
    twice = requests.post(url, files={"data": PICTURES["small"]}, data=[("target", "1"), ("target", "2")], timeout=HANG)
    assert (twice.status_code, twice.json()["type"]) == (400, "InvalidOption")
    ignored = requests.post(
        url.replace("explanations", "predictions"), files={"data": PICTURES["small"]}, data=[("a", "1"), ("a", "2")]
    )
    assert ignored.status_code == 200


@pytest.mark.live
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_is_told(live: Server, tmp_path: Path) -> None:
    """As most people send two pictures, the length said or not."""
    for name, content in PICTURES.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    for more in ([], ["-H", "Transfer-Encoding: chunked"]):
        command = ["curl", "-s", *more, "-F", "data=@tiny.png", "-F", "data=@photo.png", f"{live.url}/explanations/{MODEL}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert TWICE in done.stdout


def test_a_neighbour_in_the_batch_is_answered(tmp_path: Path) -> None:
    """The worker's own reading of a batch, in process: one form names a field twice, the others do not."""
    service = load_service(archive(tmp_path / "tiny"))
    picture = bytearray(PICTURES["small"])
    batch = [
        {
            "requestId": str(place).encode(),
            "parameters": [{"name": "data", "value": picture, "contentType": "image/png"}] * count,
            "headers": [{"name": b"explain", "value": b"True"}],
        }
        for place, count in enumerate((1, 2, 1))
    ]
    headers, rows, _ = type(service).retrieve_data_for_inference(batch)
    calls = [read_call(row, head.get_request_properties()) for row, head in zip(rows, headers, strict=True)]
    assert [call.repeated for call in calls] == [(), ("data",), ()]
    replies = handler_of(service).face.run(calls)
    assert [reply.status for reply in replies] == [200, 400, 200]


def test_a_client_cannot_claim_it(tmp_path: Path) -> None:
    """A header or a field of that name means nothing; wrapping twice changes nothing."""
    service = load_service(archive(tmp_path / "tiny"))
    before = type(service).retrieve_data_for_inference
    adapt_worker()
    assert type(service).retrieve_data_for_inference is before
    fields: dict[str, Any] = {"data": bytearray(PICTURES["small"])}
    (answer,) = ask(service, [Row(fields, {REPEATED: "data"}, explain=True)])
    assert answer.status == 200
    (answer,) = ask(service, [Row({**fields, REPEATED: io.BytesIO(b"data").read()}, {}, explain=False)])
    assert answer.status == 200
