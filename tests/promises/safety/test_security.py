"""SECURITY.md's promises, each tried from outside on a live server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import re
import runpy
import shutil
import socket
import stat
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from tests.support.build import blank, encoded, mar, noise
from tests.support.processes.waiting import HANG, wait_until

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[3]
PICTURE = bytes(encoded(noise()))
JPEG = bytes(encoded(noise(), "JPEG"))
TEXT = base64.b64encode(PICTURE).decode()
SECRET = "s3cret-0f-a-client"
HOSTILE = "hostile"


def post(server: Server, path: str, body: Any = PICTURE, **headers: str) -> requests.Response:
    """Bytes as they are, anything else as JSON."""
    if not isinstance(body, bytes):
        headers, body = {"Content-Type": "application/json", **headers}, json.dumps(body).encode()
    return requests.post(f"{server.url}/{path}", data=body, headers=headers, timeout=HANG)


# ------------------------------------------------------------------ who reaches what


@pytest.mark.parametrize(
    "path", ["predictions/hostile", "explanations/hostile", "v1/models/hostile:predict", "v2/models/hostile/infer"]
)
def test_a_page_whose_name_points_here_gets_no_answer(live: Server, path: str) -> None:
    """As after DNS rebinding: the browser sends the page's own name. By address and by localhost all is as ever."""
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200)):  # routes are told by the body
        answer = post(live, path, Host=host)
        assert answer.status_code == status
        assert status != 403 or answer.json()["type"] == "HostNotAllowed"
    page = requests.get(
        f"{live.url}/explanations/{HOSTILE}", headers={"accept": "text/html", "Host": "evil.example"}, timeout=HANG
    )
    assert page.status_code == 403


def test_nothing_listens_beyond_this_machine(live: Server) -> None:
    """Java and its workers hold sockets on loopback only: inference, management, metrics and gRPC."""
    listening = [
        connection.laddr
        for pid in live.pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]

    assert len(listening) == 5
    assert all(ipaddress.ip_address(address.ip.removeprefix("::ffff:")).is_loopback for address in listening)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/models", f"/models/{HOSTILE}", f"/models/{HOSTILE}/1.0/set-default", "/workflows", "/metrics"]
)
def test_the_inference_address_manages_nothing(live: Server, method: str, path: str) -> None:
    """Neither lists nor changes models, nor tells metrics."""
    answer = requests.request(method, live.url + path, timeout=HANG)

    assert answer.status_code in (404, 405), answer.text


def test_a_client_cannot_ask_for_the_metadata(live: Server) -> None:
    """The header by which TorchServe asks a worker to describe itself changes no answer."""
    plain, forged = (post(live, f"predictions/{HOSTILE}", **headers) for headers in ({}, {"describe": "True"}))

    assert (plain.status_code, plain.json()) == (forged.status_code, forged.json())


def test_models_are_neither_registered_nor_removed(live: Server) -> None:
    """The model API is off, on the management address too."""
    for method, path in (("POST", "/models?url=hostile.mar"), ("DELETE", f"/models/{HOSTILE}")):
        assert requests.request(method, live.management_url + path, timeout=HANG).status_code == 405
    assert post(live, f"predictions/{HOSTILE}").status_code == 200


def test_no_page_of_another_site_may_ask(live: Server) -> None:
    """No answer carries a header that lets a browser read it elsewhere."""
    answers = [post(live, f"explanations/{HOSTILE}", Origin="http://elsewhere.example")]
    answers.append(requests.options(f"{live.url}/explanations/{HOSTILE}", headers={"Origin": "http://a.example"}, timeout=HANG))

    for answer in answers:
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


# ------------------------------------------------------------------ archives


def test_the_metadata_tell_which_weights_are_in_use(live: Server, demo_store: Path) -> None:
    """The SHA-256 of the archive's file, in the metadata, and its start in every answer."""
    with zipfile.ZipFile(demo_store / f"{HOSTILE}.mar") as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        digest = hashlib.sha256(archive.read(manifest["model"]["serializedFile"])).hexdigest()
    (told,) = requests.get(f"{live.management_url}/models/{HOSTILE}?customized=true", timeout=HANG).json()

    assert told["customizedMetadata"]["weights"] == f"sha256:{digest}"
    assert post(live, f"explanations/{HOSTILE}").json()["weights"] == f"sha256:{digest[:12]}"


# ------------------------------------------------------------------ limits


DEEP = b'{"data": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
SIZE = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
WIDE = PICTURE[:12] + SIZE + zlib.crc32(SIZE).to_bytes(4, "big") + PICTURE[33:]  # a PNG that says it has 900 megapixels
LARGE = base64.b64encode(blank(7_000)).decode()  # 49 megapixels in some kilobytes
WORDS = {"name": "x", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": ["a" * 60_000] + ["b"] * 17_000}
LIMITS = [
    ("pixels", WIDE, 413),
    ("pixels of a request", {"instances": [LARGE] * 64}, 413),
    ("words for numbers", {"inputs": [WORDS]}, 400),
    (
        "parts of a picture",
        PICTURE[:33] + (b"\0\0\0\0abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")) * 2_500_000 + PICTURE[33:],
        400,
    ),
    ("fill bytes of a JPEG", JPEG[:-2] + b"\xff" * 3_000_000 + b"\0" + b"\xff\xda\0\2" * 101, 400),
    ("depth of JSON", DEEP, 400),
    ("targets", {"data": TEXT, "top_k": 11}, 400),
    ("instances", {"instances": [{"b64": TEXT}] * 65}, 413),
    ("numbers that are none", b'{"data": NaN}', 400),
    ("formats", b"II*\x00" + bytes(100), 400),
    ("no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 400),
]


@pytest.mark.parametrize(("body", "status"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_what_is_too_much_is_refused(live: Server, body: Any, status: int) -> None:
    """With a client's error, in one line that shows neither path, stack nor address; no worker ends."""
    before = live.pids
    kind = {"Content-Type": "application/json"} if isinstance(body, bytes) and body.startswith(b"{") else {}
    answer = post(live, f"explanations/{HOSTILE}", body, **kind)

    assert answer.status_code == status, answer.text
    message = answer.json()["message"]
    assert not [mark for mark in ("\n", "/usr", "/tmp", "site-packages", "Traceback", "0x") if mark in message]
    assert live.pids == before


def test_an_upload_beyond_the_limit_is_refused(live: Server) -> None:
    """`max_request_size`, by what its header says: 413, or a connection that is closed, and the server goes on."""
    place = urlsplit(live.url)
    connection = http.client.HTTPConnection(place.netloc, timeout=HANG)
    with contextlib.closing(connection), contextlib.suppress(ConnectionError):
        connection.putrequest("POST", f"/explanations/{HOSTILE}")
        connection.putheader("Content-Length", str(33_554_433))
        connection.endheaders(b"x")
        assert connection.getresponse().status == 413
    assert post(live, f"predictions/{HOSTILE}").status_code == 200


def test_headers_beyond_the_limit_are_refused(live: Server) -> None:
    """8 KiB in all, which proxies that pass large cookies must know; below that they are taken."""
    for size, status in ((7_000, 200), (9_000, 400)):
        assert post(live, f"predictions/{HOSTILE}", Cookie="session=" + "x" * size).status_code == status


# ------------------------------------------------------------------ echoes and logs


def test_nothing_hostile_is_echoed_as_it_came(live: Server) -> None:
    """Labels and what a client sends come back only inside JSON, with its type, and headers are ASCII on one line."""
    evil = "<script>alert(1)</script>\r\nX-Evil: 1"
    asked = post(live, f"explanations/{HOSTILE}", {"data": TEXT, "target": evil})
    header = post(live, f"explanations/{HOSTILE}", PICTURE, **{"X-Explain-Target": "<script>"})
    picture = post(live, f"explanations/{HOSTILE}", PICTURE, Accept="image/png", **{"X-Explain-Top-K": "3"})

    for answer in (asked, header):
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
        assert answer.json()["type"] == "UnknownLabel"
    for answer in (asked, header, picture):
        assert "x-evil" not in answer.headers
        assert all(value.isascii() and value.isprintable() for value in answer.headers.values())
    assert picture.status_code == 200
    page = requests.get(f"{live.url}/explanations/{HOSTILE}", headers={"Accept": "text/html"}, timeout=HANG)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script>alert(1)" not in page.text


def test_no_secret_and_no_picture_reach_log_metrics_or_answer(live: Server) -> None:
    """Authorization, cookies and what a client sends, in good requests and bad ones."""
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}", "X-Api-Key": SECRET}
    bad = {"data": SECRET, "target": 1}
    answers = [
        post(live, f"{route}/{HOSTILE}", body, **headers)
        for route in ("predictions", "explanations")
        for body in (PICTURE, b"no picture", bad)
    ]
    answers.append(post(live, "explanations/nobody", PICTURE, **headers))
    metrics = requests.get(f"{live.metrics_url}/metrics", timeout=HANG).text

    assert {answer.status_code for answer in answers} == {200, 400, 404}
    assert not [line for line in live.lines if SECRET in line or TEXT[:40] in line]
    assert SECRET not in metrics
    assert not [answer.text for answer in answers if SECRET in answer.text and "InvalidBase64" not in answer.text]


# ------------------------------------------------------------------ tokens, and URLs of archives where the model API is on


def container_settings(folder: Path, **changes: str) -> Path:
    """The image's settings, on loopback and changed, as a file in `folder`."""
    text = (ROOT / "deploy" / "torchserve" / "container.properties").read_text("utf-8").replace("0.0.0.0", "127.0.0.1")
    for key, value in changes.items():
        text, count = re.subn(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
        assert count == 1
    path = folder / "config.properties"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """The image's settings, with the model API turned on; and its folder, which holds the tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "store").mkdir()
    mar(folder / "store", "small")
    config = container_settings(folder, enable_model_api="true")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Server(folder / "store", config=config) as server:
            yield server, folder


def bearer(folder: Path, kind: str) -> dict[str, str]:
    """The header that carries TorchServe's token for `inference`, `management` or its `API`."""
    return {"Authorization": f"Bearer {json.loads((folder / 'key_file.json').read_text())[kind]['key']}"}


def test_every_request_needs_its_token(guarded: tuple[Server, Path]) -> None:
    """None, a wrong one and that of the other address are refused on every route, /ping too; the file is the owner's alone."""
    server, folder = guarded
    assert stat.S_IMODE((folder / "key_file.json").stat().st_mode) == 0o600
    management, inference = bearer(folder, "management"), bearer(folder, "inference")
    for path in ("ping", "predictions/small", "explanations/small", "v1/models/small:predict", "v2/models/small/infer"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}, management):
            answer = requests.post(f"{server.url}/{path}", data=PICTURE, headers=headers, timeout=HANG)
            assert (answer.status_code, answer.json()["type"]) == (400, "InvalidKeyException"), path
    for headers in ({}, inference):
        assert requests.get(f"{server.management_url}/models", headers=headers, timeout=HANG).status_code == 400
        assert requests.get(f"{server.management_url}/token?type=inference", headers=headers, timeout=HANG).status_code == 400

    assert post(server, "explanations/small", PICTURE, **inference).status_code == 200
    assert requests.get(f"{server.management_url}/models", headers=management, timeout=HANG).status_code == 200
    assert not [line for line in server.lines for kind in ("inference", "management", "API") if token(folder, kind) in line]


def token(folder: Path, kind: str) -> str:
    """The token alone."""
    return bearer(folder, kind)["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("url", ["file://{outside}", "http://127.0.0.1:{port}/small.mar", "{outside}", "../outside.mar"])
def test_no_url_names_an_archive(guarded: tuple[Server, Path], url: str) -> None:
    """Even with the model API on and the right token: neither the disk beside the store, nor the network."""
    server, folder = guarded
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        outside = shutil.copy(folder / "store" / "small.mar", folder / "outside.mar")
        asked = url.format(outside=outside, port=listener.getsockname()[1])
        command = {"url": asked, "model_name": "other", "initial_workers": "0"}
        for path in ("models", "workflows"):
            answer = requests.post(
                f"{server.management_url}/{path}", params=command, headers=bearer(folder, "management"), timeout=60
            )
            assert 400 <= answer.status_code < 500, answer.text
        with pytest.raises(BlockingIOError):
            listener.accept()
    listed = requests.get(f"{server.management_url}/models", headers=bearer(folder, "management"), timeout=HANG).json()
    assert [each["modelName"] for each in listed["models"]] == ["small"]


def ready(server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    """The image's health check, asked of `server`."""
    environment = os.environ | {"CAMSERVE_MANAGEMENT": server.management_url}
    command = [sys.executable, "-I", str(ROOT / "deploy" / "ready.py")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_health_check_waits_for_tokens_that_are_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe empties the file and fills it again; for that moment the server is as healthy as ever."""
    program = runpy.run_path(str(ROOT / "deploy" / "ready.py"))
    keys = tmp_path / "key_file.json"
    keys.write_text('{"management": {"key"')
    monkeypatch.setitem(program["read_token"].__globals__, "KEYS", keys)
    monkeypatch.setitem(program["read_token"].__globals__, "TRIES", round(10 * HANG))
    writer = threading.Timer(0.3, keys.write_text, ['{"management": {"key": "abc"}}'])
    writer.start()
    assert program["read_token"]("management") == "abc"
    writer.join()
    keys.write_text("{")
    monkeypatch.setitem(program["read_token"].__globals__, "TRIES", 3)
    with pytest.raises(ValueError, match="Expecting"):
        program["read_token"]("management")


def wait_until_expired(server: Server, folder: Path) -> None:
    """Returns once the tokens, good for three seconds, are refused; whoever waited for the server may have had new ones."""
    for url, key in ((f"{server.url}/ping", "inference"), (f"{server.management_url}/models", "management")):
        wait_until(lambda: requests.get(url, headers=bearer(folder, key), timeout=HANG).status_code != 200)  # noqa: B023 called at once


def test_health_check_and_drain_outlive_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that have expired are renewed with TorchServe's own for that; the health check says no once nobody answers."""
    (tmp_path / "store").mkdir()
    mar(tmp_path / "store", "small")
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path / "store", config=container_settings(tmp_path, token_expiration_min="0.05")) as server:
        wait_until_expired(server, tmp_path)
        assert (asked := ready(server, tmp_path)).returncode == 0, asked.stdout
        assert server.stop(drain=20)
        assert (asked := ready(server, tmp_path)).returncode == 1
        assert "does not tell: URLError" in asked.stdout
