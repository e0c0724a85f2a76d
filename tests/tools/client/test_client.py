"""The Python client: what it sends, what it makes of answers and errors, and the notebook that shows it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.processes.waiting import HANG

import camserve
from camserve.core.geometry import Rect
from camserve.tools.client import client as module
from camserve.tools.client.request import encode, write_request
from camserve.tools.client.result import Result, read_result
from camserve.tools.client.sources import ServerSource
from camserve.tools.commands.serve import Server

ROOT = Path(__file__).resolve().parents[3]
CAT = ROOT / "examples" / "cat.jpg"
DEMO = "efficientnet_lite0"

ANSWER: dict[str, Any] = {
    "predictions": {"cat": 0.75},
    "classes": [{"index": 3, "label": "cat", "probability": 0.75}, {"index": 1, "label": "dog", "probability": 0.25}],
    "explanations": [
        {"target": 3, "label": "cat", "probability": 0.75, "heatmap": [[0.0, 1.0]], "range": [0.0, 2.5], "region": [2, 0, 4, 2]}
        | {"warnings": []},
        {"target": 1, "label": "dog", "probability": 0.25, "heatmap": [[0.0, 0.0]], "range": None, "region": None}
        | {"warnings": ["not_finite"]},
    ],
    "image": {"width": 4, "height": 2, "view": [0, 0, 4, 2]},
    **{"method": "gradcam", "layer": "features", "model": "m", "version": "1.0", "weights": "sha256:00"},
}


class Scripted(ThreadingHTTPServer):
    """Answers as it was told to, in order, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.retry_after: Iterator[str] = iter(())

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Scripted(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        status, content = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("location", "/elsewhere")
        for wait in islice(self.server.retry_after, 1):
            self.send_header("retry-after", wait)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Starts servers that answer as they were told to."""
    running: list[tuple[Scripted, threading.Thread]] = []

    def start(*answers: tuple[int, bytes]) -> Scripted:
        server = Scripted(*answers)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD = (200, json.dumps(ANSWER).encode())
FULL = (503, b'{"code":503,"type":"ServiceUnavailableException","message":"full"}')


def test_an_answer_becomes_frozen_types() -> None:
    """Every value of the JSON is there, as a number, a rectangle or an array that cannot be changed."""
    result = read_result(ANSWER)

    assert [(each.index, each.label, each.probability) for each in result.predictions] == [(3, "cat", 0.75), (1, "dog", 0.25)]
    assert result.heatmap.dtype == np.float32
    np.testing.assert_array_equal(result.heatmap, [[0, 1]])
    assert (result.size, result.view, result.region) == ((4, 2), Rect(0, 0, 4, 2), Rect(2, 0, 4, 2))
    assert repr(result.predictions[0]) == "Prediction(index=3, label='cat', probability=0.75)"
    assert repr(result.explanations[1]) == (
        "Explanation(target=1, label='dog', probability=0.25, range=None, region=None, warnings=('not_finite',), inside=None)"
    )
    assert result == read_result(ANSWER)
    assert result.explanations[0].range == (0.0, 2.5)
    assert (result.explanations[1].range, result.explanations[1].region) == (None, None)
    assert result.explanations[1].warnings == ("not_finite",)
    assert (result.method, result.layer, result.model, result.version) == ("gradcam", "features", "m", "1.0")
    with pytest.raises(AttributeError):
        result.method = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        result.heatmap[0, 0] = 1


def test_without_an_overlay_nothing_is_saved(tmp_path: Path) -> None:
    """The error says what to ask for, and a notebook shows the text in its place."""
    result = read_result(ANSWER)
    with pytest.raises(ValueError, match=r"overlay=False"):
        result.save(tmp_path / "o.png")
    assert result._repr_png_() is None
    assert not (tmp_path / "o.png").exists()


def drawn() -> Result:
    """An answer with two explanations whose overlays are red and blue, 16 by 8."""
    urls = []
    for colour in ("red", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (16, 8), colour).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    explanations = [{**each, "overlay": url} for each, url in zip(ANSWER["explanations"], urls, strict=True)]
    return read_result({**ANSWER, "explanations": explanations})


@pytest.mark.parametrize(
    ("name", "kind"), [("o.png", "PNG"), ("o.jpg", "JPEG"), ("o.JPEG", "JPEG"), ("o.webp", "WEBP"), (".o.v2.Png", "PNG")]
)
def test_a_picture_is_saved_as_its_name_ends(tmp_path: Path, name: str, kind: str) -> None:
    """One overlay, and those of all targets side by side."""
    result = drawn()
    result.explanations[1].save(tmp_path / name)
    with Image.open(tmp_path / name) as one:
        assert (one.format, one.size, one.mode) == (kind, (16, 8), "RGB")
        np.testing.assert_allclose(np.asarray(one)[4, 8], [0, 0, 255], atol=3)
    result.save(str(tmp_path / name))
    with Image.open(tmp_path / name) as both:
        assert (both.format, both.size) == (kind, (40, 8))
        np.testing.assert_allclose(np.asarray(both)[4, 36], [0, 0, 255], atol=3)


@pytest.mark.parametrize("name", ["o.gif", "o.json", "o", ".png", "o.png.txt"])
def test_a_picture_is_not_saved_under_another_name(tmp_path: Path, name: str) -> None:
    """A PNG that is called otherwise would be opened by nothing."""
    for saved in (drawn(), drawn().explanations[0]):
        with pytest.raises(ValueError, match=r"expected a name that ends in \.png, \.jpg, \.jpeg or \.webp, got") as raised:
            saved.save(tmp_path / name)
        assert f'"{name}"' in str(raised.value)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("url", "model", "path"),
    [
        ("", "cats", "/explanations/cats"),
        ("/", "cats/2.0", "/explanations/cats/2.0"),
        ("/explanations/cats", None, "/explanations/cats"),
        ("/predictions/cats/", None, "/explanations/cats"),
        ("/explanations/cats", "dogs", "/explanations/dogs"),
        ("/prefix/explanations/a%20b", None, "/prefix/explanations/a%20b"),
        ("", "a?b#c", "/explanations/a%3Fb%23c"),
    ],
)
def test_the_url_may_name_the_model(scripted: Callable[..., Scripted], url: str, model: str | None, path: str) -> None:
    """A root with `model`, a model's own URL, or one behind a prefix lead to the same route."""
    server = scripted(GOOD)
    with camserve.Client(server.url + url) as client:
        client.explain(b"picture", model)
    assert server.asked[0][0] == path


def test_a_url_that_is_none_and_a_model_that_is_not_named_are_told() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=r"url: expected http://HOST:PORT"):
        camserve.Client("localhost:8080")
    with camserve.Client("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="model: which one"):
        client.explain(b"picture")


def test_options_and_token_go_into_headers(scripted: Callable[..., Scripted]) -> None:
    """Labels are sent as JSON lists in ASCII, so that digits stay a label; the picture goes as it is."""
    server = scripted(GOOD, GOOD)
    with camserve.Client(f"{server.url}/explanations/m", token="secret") as client:
        client.explain(b"picture", target="281", method="gradcam++", opacity=0.25)
        numpys: Any = np.int64(3)
        client.explain(bytearray(b"picture"), target=[numpys, "café"], layer="layer4", overlay=False, check=False)
        assert "secret" not in repr(client)

    (_, first, body), (_, second, _) = server.asked
    assert body == b"picture"
    assert first["authorization"] == "Bearer secret"
    explained = {name: value for name, value in first.items() if name.startswith("x-explain")}
    wanted = {"target": '["281"]', "method": "gradcam++", "opacity": "0.25", "overlay": "true"}
    assert explained == {f"x-explain-{name}": value for name, value in wanted.items()}
    assert second["x-explain-target"] == '[3, "caf\\u00e9"]'
    assert "x-explain-overlay" not in second
    assert second["x-explain-check"] == "false"  # where it is not given, the archive says


def test_the_token_may_change_and_a_netrc_never_replaces_it(
    scripted: Callable[..., Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function is asked for each request; passwords of this machine's user are not sent to the server."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    tokens = iter(["one", "two", ""])
    server = scripted(GOOD, GOOD, GOOD)
    with camserve.Client(f"{server.url}/explanations/m", token=lambda: next(tokens)) as client:
        for _ in range(3):
            client.explain(b"picture")
    assert [headers.get("authorization") for _, headers, _ in server.asked] == ["Bearer one", "Bearer two", None]


def test_a_full_server_is_asked_again_over_one_connection(scripted: Callable[..., Scripted]) -> None:
    """Two 503 are not the caller's concern."""
    server = scripted(FULL, FULL, GOOD)
    with camserve.Client(f"{server.url}/explanations/m") as client:
        assert client.explain(b"picture").predictions[0].label == "cat"
    assert len(server.asked) == 3


@pytest.mark.parametrize("lost", [(502, b"<html>proxy</html>"), (500, b"Internal Server Error")])
def test_what_a_proxy_lost_is_asked_again(
    scripted: Callable[..., Scripted], lost: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is the caller's concern where it is lost time and again; errors of the server's own are not asked again."""
    monkeypatch.setattr(module, "TRIES", 1)
    server = scripted(lost, GOOD, lost, lost)
    with camserve.Client(f"{server.url}/explanations/m") as asking:
        assert asking.explain(b"picture").predictions[0].label == "cat"
        with pytest.raises(camserve.CamserveError) as raised:
            asking.explain(b"picture")
    assert (raised.value.status, raised.value.type) == (lost[0], "NoAnswer")
    assert len(server.asked) == 4


def test_a_connection_that_breaks_is_made_again_where_the_server_had_answered() -> None:
    """A server that goes and comes back, at the same address; one that never answered is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        body = json.dumps({"cat": 1.0}).encode()
        good = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

        def serve() -> None:
            for answer in (good, b"", good):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with camserve.Client(f"http://127.0.0.1:{listener.getsockname()[1]}/explanations/m") as asking:
            assert [asking.predict(b"picture") for _ in range(2)] == [{"cat": 1.0}] * 2
        thread.join()


@pytest.mark.parametrize(
    ("answer", "status", "kind", "message"),
    [
        ((400, b'{"code":400,"type":"UnknownLabel","message":"target: no"}'), 400, "UnknownLabel", "target: no"),
        ((413, b""), 413, "TooLarge", "the upload is larger than the server accepts"),
        ((302, b""), 302, "NoAnswer", "the answer is not the server's own"),
        ((200, b"<html>proxy</html>"), 200, "NoAnswer", "the answer is not the server's own"),
        ((200, b"[[0.1]]"), 200, "NoAnswer", "the answer is no explanation; the model's handler is not camserve's"),
        ((200, b'{"cat": 1}'), 200, "NoAnswer", "the answer is no explanation; the model's handler is not camserve's"),
    ],
)
def test_every_failure_is_one_kind_of_error(
    scripted: Callable[..., Scripted], answer: tuple[int, bytes], status: int, kind: str, message: str
) -> None:
    """Status, type and message are the server's, or say that they are not; redirections are not followed."""
    server = scripted(answer)
    with camserve.Client(f"{server.url}/explanations/m") as client, pytest.raises(camserve.CamserveError) as raised:
        client.explain(b"picture")
    assert (raised.value.status, raised.value.type, raised.value.message) == (status, kind, message)
    assert str(raised.value) == f"{status} {kind}: {message}"
    assert len(server.asked) == 1


KEYLESS = (400, b'{"code":400,"type":"InvalidKeyException","message":"Token Authorization failed."}')
OTHER = (400, b'{"code":400,"type":"InvalidImage","message":"Token"}')


@pytest.mark.parametrize(
    ("token", "answer", "words"),
    [
        (None, KEYLESS, "400 InvalidKeyException: the server wants a token (TorchServe's default): give --token-file"),
        ("old", KEYLESS, "400 InvalidKeyException: the server refuses the token that was given"),
        (None, (401, b""), "401 NoAnswer: the server wants a token"),
        ("old", (403, b""), "403 NoAnswer: the server refuses the token"),
        ("old", OTHER, "400 InvalidImage: Token"),
    ],
)
def test_the_tools_say_what_to_do_about_a_token(
    scripted: Callable[..., Scripted], token: str | None, answer: tuple[int, bytes], words: str
) -> None:
    """The server's own words name no flag."""
    source = ServerSource(scripted(answer).url, "m", None if token is None else lambda: token, 60)
    with pytest.raises(camserve.CamserveError) as raised:
        source.ask(b"picture", {})
    assert str(raised.value).startswith(words)


def test_a_server_that_is_not_there_is_an_error_without_a_status() -> None:
    """The message asks the question that helps."""
    with camserve.Client("http://127.0.0.1:1/explanations/m") as client, pytest.raises(camserve.CamserveError) as raised:
        client.predict(b"picture")
    assert (raised.value.status, raised.value.type) == (None, "Unreachable")
    assert "is the server running?" in raised.value.message


def test_a_server_that_does_not_answer_in_time_is_an_error(scripted: Callable[..., Scripted]) -> None:
    """The wait ends, and is not begun again."""
    server = Scripted()
    try:
        with camserve.Client(f"{server.url}/explanations/m", timeout=0.05) as client:
            with pytest.raises(camserve.CamserveError) as raised:
                client.explain(b"picture")
            assert (raised.value.status, raised.value.type) == (None, "Timeout")
    finally:
        server.server_close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LATER = b"HTTP/1.1 503 Full\r\nretry-after: 3500\r\ncontent-length: 2\r\n\r\n{}"


@contextmanager
def dripping(first: bytes, drop: bytes) -> Iterator[str]:
    """A server that sends `first` to each connection, and then `drop` each 50 ms without end; its URL."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(first)
            end = time.monotonic() + HANG
            while drop and not stop.wait(0.05) and time.monotonic() < end:
                connection.sendall(drop)
            stop.wait(HANG)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/explanations/m"
        finally:
            stop.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("first", "drop", "picture"),
    [
        (b"", b"", b"picture"),
        (b"", b"", bytes(64 << 20)),
        (b"HTTP/1.1 ", b"2", b"picture"),
        (HEAD, b"a: b\r\n", b"picture"),
        (HEAD + b"content-length: 1000000\r\n\r\n", b" ", b"picture"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"picture"),
        (HEAD + b"connection: close\r\n\r\n{}", b" ", b"picture"),
    ],
    ids=["silent", "does not read", "status", "headers", "body", "chunks", "until the end"],
)
def test_a_call_ends_in_its_time_however_slowly_the_answer_comes(first: bytes, drop: bytes, picture: bytes) -> None:
    """A socket's own timeout would begin again with every byte."""
    with dripping(first, drop) as url, camserve.Client(url, timeout=0.4) as client:
        with pytest.raises(camserve.CamserveError) as raised:
            client.explain(picture)
        assert (raised.value.status, raised.value.type) == (None, "Timeout")


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have waited each time before it asked again."""
    seconds: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def test_a_full_server_is_not_waited_for_longer_than_the_call_may_take(naps: list[float]) -> None:
    """It asked for an hour, nearly; the answer is the one that it gave."""
    with dripping(LATER, b"") as url, camserve.Client(url, timeout=3000) as client:
        with pytest.raises(camserve.CamserveError) as raised:
            client.predict(b"picture")
        assert raised.value.status == 503
    assert naps == []


def test_a_wait_that_the_server_asks_for_is_kept(scripted: Callable[..., Scripted], naps: list[float]) -> None:
    """Where the call's time allows it; what is no time is not obeyed."""
    server = scripted(FULL, FULL, GOOD)
    server.retry_after = iter(["1", "soon"])
    with camserve.Client(f"{server.url}/explanations/m", timeout=3000) as client:
        assert client.explain(b"picture").predictions[0].label == "cat"
    asked, own = naps
    assert asked == 1
    assert 0.5 <= own <= 0.75


def test_a_call_after_a_late_one_is_answered(scripted: Callable[..., Scripted]) -> None:
    """What was cut is not used again."""
    server = scripted(GOOD, GOOD)
    with camserve.Client(f"{server.url}/explanations/m", timeout=HANG) as client:
        client.explain(b"picture")
        client._wire._shut_down()  # as a deadline does
        assert client.explain(b"picture").predictions[0].label == "cat"


@pytest.mark.parametrize(
    "change",
    [{"classes": []}, {"explanations": [{}]}, {"method": 3}, {"image": {"width": 0, "height": 2}}, {"explanations": 3}],
)
def test_an_answer_that_breaks_the_contract_is_an_error(scripted: Callable[..., Scripted], change: dict[str, Any]) -> None:
    """Of one kind, and not whatever reading it happens to raise."""
    server = scripted((200, json.dumps({**ANSWER, **change}).encode()))
    with camserve.Client(f"{server.url}/explanations/m") as client, pytest.raises(camserve.CamserveError, match="BadAnswer"):
        client.explain(b"picture")


def test_pictures_come_in_many_forms() -> None:
    """A file, bytes, a Pillow image and arrays hold the same pixels; anything else is refused in words."""
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for image in (pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(image)))), pixels)
    assert encode(CAT) == encode(str(CAT)) == encode(CAT.read_bytes()) == CAT.read_bytes()
    with pytest.raises(ValueError, match=r"expected an array \[H, W\].* got \[4, 5, 3\] of float32"):
        encode(pixels.astype(np.float32))


def test_importing_the_package_does_not_load_the_client() -> None:
    """Only asking for it does; an unknown name is an AttributeError as everywhere."""
    code = "import camserve, sys; assert 'requests' not in sys.modules; camserve.Client; assert 'requests' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "handlers")})
    with pytest.raises(AttributeError, match="has no attribute Clint"):
        _ = camserve.Clint


# ------------------------------------------------------------------ against a live server


def size_of(path: Path) -> tuple[int, int]:
    """A picture's width and height."""
    return Image.open(io.BytesIO(path.read_bytes())).size


@pytest.mark.live
def test_a_live_server_explains(live: Server, tmp_path: Path) -> None:
    """Two targets, their heatmaps, and an overlay of each, as large as the picture."""
    with camserve.Client(live.url) as client:
        result = client.explain(CAT, DEMO, target=["tabby", 282])
        pixels = client.explain(np.asarray(Image.open(io.BytesIO(CAT.read_bytes()))), DEMO, top_k=2, overlay=False)
        predictions = client.predict(Image.open(io.BytesIO(CAT.read_bytes())), DEMO)

    assert [each.label for each in result.explanations] == ["tabby", "tiger cat"]
    assert result.heatmap.shape == (7, 7)
    result.explanations[0].save(tmp_path / "one.png")
    result.save(tmp_path / "both.png")
    assert size_of(tmp_path / "one.png") == (451, 300)
    assert size_of(tmp_path / "both.png") == (2 * 451 + 8, 300)
    assert result._repr_png_() == (tmp_path / "both.png").read_bytes()
    assert next(iter(predictions)) == pixels.predictions[0].label
    assert len(pixels.explanations) == 2
    assert pixels.explanations[0].overlay is None


@pytest.mark.live
def test_a_live_server_explains_a_tensor_and_names_near_labels(live: Server) -> None:
    """A tensor has no picture; an unknown label is an error with help."""
    with camserve.Client(f"{live.url}/explanations/{DEMO}") as client:
        result = client.explain(np.zeros((3, 224, 224), np.float32), target=281)
        with pytest.raises(camserve.CamserveError, match="tabby") as raised:
            client.explain(CAT, target="tabi")
    assert (result.size, result.view, result.region) == (None, None, None)
    assert result.explanations[0].overlay is None
    assert raised.value.type == "UnknownLabel"


@pytest.mark.live
def test_the_notebook_runs(live: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs against a live server, and the explanations show themselves as pictures."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("CAMSERVE_URL", f"{live.url}/explanations/{DEMO}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "handlers"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=HANG, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output.output_type == "error"]


def test_arrays_are_pictures_or_tensors_by_their_type_and_shape() -> None:
    """Floats are a tensor of any number of channels; floats whose channels stand last are refused here, not sent."""
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(deep)))), deep)
    for channels in (1, 3, 5):
        tensor = np.ones((channels, 8, 9), np.float32)
        body, headers = write_request(tensor, {"top_k": 2})
        assert json.loads(body) == {"data": tensor.tolist(), "top_k": 2}
        assert headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match=r"got \[8, 9, 3\] of float32"):
        write_request(np.ones((8, 9, 3), np.float32), {})
