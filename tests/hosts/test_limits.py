"""The ASGI host among odd, slow, broken and greedy clients: what each gets, and that the others notice nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from tests.support.processes.serving import write_archive, write_held
from tests.support.processes.waiting import HANG, Gate, wait_until

from camserve.core.errors import ConfigError, RequestError
from camserve.hosts.asgi.query import add_query, read_query
from camserve.hosts.hosted import Hosted
from camserve.pipeline.archive import Archive
from camserve.tools.serving.asgi_server import AsgiServer
from camserve.tools.serving.process.errors import ServeError
from camserve.tools.serving.process.log import as_json

SETTINGS = """disable_token_authorization=true
max_request_size=100000
camserve_max_held_bytes=150000
camserve_max_connections=20
camserve_max_head_size=4000
camserve_head_seconds=600
camserve_body_seconds=600
cors_allowed_origin=https://app.example.com
cors_allowed_methods=GET, POST
"""
HURRY = """disable_token_authorization=true
camserve_head_seconds=1
camserve_body_seconds=2
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Path:
    """Two models: eight at once, and one at once with a short queue."""
    folder = tmp_path_factory.mktemp("limits") / "store"
    folder.mkdir()
    write_held(folder, gate)
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[AsgiServer]:
    """A host with room for little, and all the time in the world."""
    config = store.with_name("narrow.properties")
    config.write_text(SETTINGS)
    with AsgiServer(store, config=config) as started:
        yield started


@pytest.fixture(scope="module")
def hurried(store: Path) -> Iterator[AsgiServer]:
    """A host that waits for nobody."""
    config = store.with_name("hurried.properties")
    config.write_text(HURRY)
    with AsgiServer(store, ["eight"], config=config) as started:
        yield started


def connect(server: AsgiServer) -> socket.socket:
    """A connection of one's own."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    made.settimeout(HANG)
    return made


def answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and JSON of what comes until the server closes."""
    data = b""
    while part := connection.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def exchange(server: AsgiServer, *parts: bytes, pause: float = 0) -> tuple[int, str]:
    """What is answered to bytes that are sent with pauses: status, and the error's type."""
    with connect(server) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        status, told = answer(connection)
    assert set(told) == {"code", "type", "message"}
    assert told["code"] == status
    return status, str(told["type"])


HEAD = b"POST /predictions/eight HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        ((b"\x16\x03\x01\x00\xa5\r\n\r\n",), (400, "InvalidRequest")),
        ((b"GET /ping HTTP/1.1\r\n\r\n",), (400, "InvalidRequest")),
        ((HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx",), (400, "InvalidRequest")),
        ((HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",), (400, "InvalidRequest")),
        ((HEAD + b"x: " + b"a" * 5000 + b"\r\n\r\n",), (431, "RequestTooLarge")),
        ((HEAD, b"x: " + b"a" * 2500 + b"\r\n", b"y: " + b"a" * 2500), (431, "RequestTooLarge")),
    ],
)
def test_what_is_no_request_is_refused_in_the_contracts_shape(
    server: AsgiServer, sent: tuple[bytes, ...], wanted: tuple[int, str]
) -> None:
    """And the connection is closed."""
    assert exchange(server, *sent, pause=0.05) == wanted


@pytest.mark.parametrize("sent", [HEAD, HEAD + b"content-length: 9\r\n\r\n1"], ids=["head", "body"])
def test_what_never_ends_is_refused_in_the_contracts_shape(hurried: AsgiServer, sent: bytes) -> None:
    """And the connection is closed."""
    assert exchange(hurried, sent) == (408, "Timeout")


def test_a_body_that_drips_ends_when_its_time_is_up(hurried: AsgiServer) -> None:
    """Each byte does not start the clock anew."""
    began = time.monotonic()
    with connect(hurried) as connection:
        connection.sendall(HEAD + b"content-length: 1000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):  # closed in the middle
            while True:
                assert time.monotonic() < began + HANG
                connection.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began > 1.5


def test_connections_beyond_the_limit_are_refused_and_those_before_go_on(server: AsgiServer) -> None:
    """With a 503 at once; when one closes there is room again."""
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(20)]
        assert exchange(server) == (503, "QueueFull")
        kept[0].sendall(b"GET /ping HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert answer(kept[0])[0] == 200
    wait_until(lambda: requests.get(f"{server.url}/ping", timeout=HANG).status_code == 200)


def test_bodies_that_are_in_memory_at_once_have_a_limit(server: AsgiServer) -> None:
    """Half-sent ones count; what is given up is free again."""
    large = HEAD + b"connection: close\r\ncontent-length: 90000\r\n\r\n" + b"x" * 80000
    with connect(server) as first:
        first.sendall(large)
        for _ in range(4):  # what came before these has been read
            requests.get(f"{server.url}/ping", timeout=HANG)
        assert exchange(server, large) == (503, "QueueFull")
    whole = f"{server.url}/predictions/eight", b"x" * 90000
    wait_until(lambda: requests.post(*whole, timeout=HANG).status_code == 200)


def waiting(server: AsgiServer, model: str) -> int:
    """How many requests wait for the model's worker."""
    (described,) = requests.get(f"{server.management_url}/models/{model}", timeout=HANG).json()
    return int(described["jobQueueStatus"]["pendingRequests"])


def test_clients_that_go_away_leave_the_queue(server: AsgiServer, gate: Gate) -> None:
    """Whoever comes next has their place, before the worker has looked at them."""
    ask = f"{server.url}/predictions/one"
    with ThreadPoolExecutor(2) as pool:
        with gate:
            asked = [pool.submit(requests.post, ask, data=b"x", timeout=HANG)]
            gate.wait_held()
            with connect(server) as one, connect(server) as two:
                for gone in (one, two):
                    gone.sendall(HEAD.replace(b"eight", b"one") + b"content-length: 1\r\n\r\nx")
                wait_until(lambda: waiting(server, "one") == 2)
            wait_until(lambda: waiting(server, "one") == 0)
            asked.append(pool.submit(requests.post, ask, data=b"x", timeout=HANG))
            wait_until(lambda: waiting(server, "one") == 1)
        assert [each.result().status_code for each in asked] == [200, 200]


def is_closed(server: AsgiServer) -> bool:
    """Whether nobody listens any more where the models answer."""
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_request_that_comes_while_the_server_drains_is_answered(store: Path, gate: Gate) -> None:
    """On a connection that is open, or is made and not yet accepted; each answer says that its connection is closed."""
    ping = b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with AsgiServer(store, ["eight"]) as server, ThreadPoolExecutor(2) as pool, connect(server) as kept:
        kept.sendall(ping)
        pong = b""
        while not pong.endswith(b"}"):
            pong += kept.recv(65536)
        with gate:
            busy = pool.submit(requests.post, f"{server.url}/predictions/eight", data=b"x", timeout=HANG)
            gate.wait_held()
            stopped = pool.submit(server.stop, HANG)
            wait_until(lambda: is_closed(server), "the door is shut")
            kept.sendall(HEAD + b"content-length: 1\r\n\r\nx")
        data = b""
        while part := kept.recv(65536):
            data += part
        assert data.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in data.lower()
        assert busy.result().status_code == 200
        assert stopped.result() is True


def test_the_index_lists_the_models_and_health_has_the_protocols_shapes(server: AsgiServer) -> None:
    """KServe's V1 and V2 clients read `status`, `live` and `ready`; a browser gets a page without scripts."""

    def get(path: str, **headers: str) -> requests.Response:
        return requests.get(f"{server.url}{path}", headers=headers, timeout=HANG)

    page = get("/", accept="text/html,*/*;q=0.8")
    assert page.headers["content-type"].startswith("text/html")
    assert 'href="explanations/eight"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert get("/").json() == {"status": "alive"}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2/models/eight/ready").json() == {"name": "eight", "ready": True}
    described = get("/v2/models/eight").json()
    assert described["versions"] == ["1.0"]
    assert [each["name"] for each in described["outputs"]] == ["label", "index", "probability"]
    assert get("/v2").json()["version"]
    refused = requests.post(f"{server.url}/ping", timeout=HANG)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert requests.delete(f"{server.url}/predictions/eight", timeout=HANG).headers["allow"] == "POST, PUT, GET, HEAD"


def test_pages_of_the_site_that_is_allowed_may_read_answers(server: AsgiServer) -> None:
    """By TorchServe's own settings; a preflight is answered without a model."""
    asked = requests.options(f"{server.url}/explanations/eight", headers={"origin": "https://app.example.com"}, timeout=HANG)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-methods"] == "GET, POST"
    assert requests.get(f"{server.url}/ping", timeout=HANG).headers["access-control-allow-origin"] == "https://app.example.com"


@pytest.mark.parametrize(
    ("query", "options"),
    [
        (b"", {}),
        (b"target=tabby&top-k=2", {"x-explain-target": "tabby", "x-explain-top-k": "2"}),
        (b"target=", {"x-explain-target": ""}),  # the parser refuses it
        (b"overlay", {"x-explain-overlay": ""}),
        (b"target=a%2Bb+c", {"x-explain-target": "a+b c"}),
    ],
)
def test_the_query_becomes_headers(query: bytes, options: dict[str, str]) -> None:
    """Nothing is dropped: not even an option without a value."""
    assert read_query(query) == options


@pytest.mark.parametrize("query", [b"target=1&target=2", b"top_k=1&TOP-K=2", b"&".join(b"a%d=1" % n for n in range(40))])
def test_a_query_that_says_a_thing_twice_is_refused(query: bytes) -> None:
    """As a form's fields are."""
    with pytest.raises(RequestError) as caught:
        add_query({}, query)
    assert (caught.value.status, caught.value.kind) == (400, "InvalidOption")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keystore=a.jks", "PEM"),
        ("models={}", "model-config.yaml"),
        ("install_py_dep_per_model=true", "beforehand"),
        ("camserve_head_seconds=soon", "a whole number of at least 1"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, line: str, words: str) -> None:
    """With what to do instead."""
    write_archive(tmp_path, "any")
    config = tmp_path / "config.properties"
    config.write_text(f"disable_token_authorization=true\n{line}\n")
    with pytest.raises(ServeError, match=words), AsgiServer(tmp_path, config=config):
        pass


def test_an_archives_settings_for_torchserve_alone_are_refused(tmp_path: Path) -> None:
    """And a model for the processor is given no GPU."""

    def hosted(**config: object) -> Hosted:
        return Hosted.from_archive(Archive(tmp_path, {"model": {"modelVersion": "1.0"}}, config), "a.mar", "a", 1, {})

    assert hosted().on_gpu
    assert not hosted(deviceType="cpu").on_gpu
    for wrong in ({"parallelType": "pp"}, {"deviceType": "xpu"}, {"deviceIds": [1]}, {"sequenceBatching": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            hosted(**wrong)


def test_the_log_is_the_same_whether_lines_or_objects() -> None:
    """With the level and the logger of each line."""

    def told(line: str) -> tuple[str, str, str]:
        event = json.loads(as_json(line))
        return event["level"], event["logger"], event["message"]

    assert told("ERROR camserve.hosts.batcher lost") == ("ERROR", "camserve.hosts.batcher", "lost")
    assert told("[cats-0] WARNING ts.x no")[:2] == ("WARN", "MODEL_LOG")
    assert told("[cats-0] a print") == ("INFO", "MODEL_LOG", "[cats-0] a print")
    assert told("Java says") == ("WARN", "stdout", "Java says")
