"""The ASGI host: batches that form, and what is answered when something ends, is full, or takes too long."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from tests.support.build import mar
from tests.support.processes.serving import assert_handed, read_batch_sizes, write_archive, write_held
from tests.support.processes.waiting import HANG, Gate, wait_until

from camserve.hosts.metrics import Registry
from camserve.tools.commands import doctor
from camserve.tools.serving.asgi_server import AsgiServer
from camserve.tools.serving.own_server import bind
from camserve.tools.serving.process.errors import ServeError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Path:
    """Models: eight at once, one at once with a short queue, one that takes longer than it may."""
    folder = tmp_path_factory.mktemp("hosts") / "store"
    folder.mkdir()
    write_held(folder, gate)
    write_archive(folder, "slow", seconds=3, responseTimeout=1)
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[AsgiServer]:
    """A running host with all of them."""
    with AsgiServer(store) as started:
        yield started


def ask(server: AsgiServer, model: str, **options: object) -> requests.Response:
    """One prediction."""
    return requests.post(f"{server.url}/predictions/{model}", data=b"x", timeout=HANG, **options)  # type: ignore[arg-type]


def error(answer: requests.Response) -> tuple[int, str]:
    """Status and type of an error, which has the contract's shape."""
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert set(told) == {"code", "type", "message"}
    assert told["code"] == answer.status_code
    return answer.status_code, told["type"]


def test_an_answers_body_does_not_wait_for_its_heads_acknowledgement() -> None:
    """Nagle's algorithm would hold it back for as long as a client puts that off: 40 ms."""
    told: list[int] = []

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(greet, sock=bind("127.0.0.1", 0)) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await reader.read()
            writer.close()
            await writer.wait_closed()

    asyncio.run(asyncio.wait_for(serve(), HANG))
    assert told == [1]


def pid_of(server: AsgiServer, model: str) -> int:
    """The process of a model's worker."""
    (described,) = requests.get(f"{server.management_url}/models/{model}", timeout=HANG).json()
    return int(described["workers"][0]["pid"])


def wait_for_worker(server: AsgiServer, model: str) -> None:
    """Returns once the model answers."""
    wait_until(lambda: ask(server, model).status_code == 200)


def wait_for_queue(server: AsgiServer, model: str, length: int) -> None:
    """Returns once so many requests wait for the model's worker."""

    def waiting() -> int:
        (described,) = requests.get(f"{server.management_url}/models/{model}", timeout=HANG).json()
        return int(described["jobQueueStatus"]["pendingRequests"])

    wait_until(lambda: waiting() == length, f"a queue of {length}")


@contextmanager
def held(server: AsgiServer, model: str, gate: Gate, waiting: int) -> Iterator[list[Future[requests.Response]]]:
    """Asks once for what the worker keeps, and so many times for what waits for it; the gate opens at the block's end."""
    with ThreadPoolExecutor(1 + waiting) as pool, gate:
        asked = [pool.submit(ask, server, model)]
        gate.wait_held()
        asked += [pool.submit(ask, server, model) for _ in range(waiting)]
        wait_for_queue(server, model, waiting)
        yield asked


def is_closed(server: AsgiServer) -> bool:
    """Whether nobody listens any more where the models answer."""
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_waits_is_taken_at_once_so_batches_are_full(server: AsgiServer, gate: Gate) -> None:
    """What comes while the worker is busy goes in batches of 8, none of which waits for more."""
    with held(server, "eight", gate, 19) as asked:
        pass
    assert {each.result().status_code for each in asked} == {200}
    assert read_batch_sizes(server.metrics_url, "eight") == {1: 1, 3: 1, 8: 2}


def test_a_full_queue_is_a_503_at_once_and_the_others_are_answered(server: AsgiServer, gate: Gate) -> None:
    """The queue's limit is the archive's own `jobQueueSize`."""
    with held(server, "one", gate, 2) as asked:
        assert [error(ask(server, "one")) for _ in range(3)] == [(503, "QueueFull")] * 3
    assert [each.result().status_code for each in asked] == [200] * 3


def test_what_takes_too_long_is_a_504_and_its_worker_is_replaced(server: AsgiServer) -> None:
    """The limit is the archive's `responseTimeout`."""
    before = pid_of(server, "slow")
    assert error(ask(server, "slow")) == (504, "Timeout")
    wait_until(lambda: pid_of(server, "slow") not in (before, 0))


def test_a_killed_worker_costs_what_it_had_and_no_more(server: AsgiServer, gate: Gate) -> None:
    """Those in flight get a JSON 503, though nothing else has happened; those that waited are answered by the next worker."""
    wait_for_worker(server, "one")
    with held(server, "one", gate, 2) as asked:
        os.kill(pid_of(server, "one"), signal.SIGKILL)
        assert error(asked[0].result()) == (503, "WorkerLost")
    assert [each.result().status_code for each in asked[1:]] == [200, 200]


def test_a_client_that_goes_away_takes_its_request_with_it(server: AsgiServer, gate: Gate) -> None:
    """It leaves the queue, and is not worked on."""
    wait_for_worker(server, "one")
    with ThreadPoolExecutor(1) as pool:
        with gate:
            first = pool.submit(ask, server, "one")
            gate.wait_held()
            host, port = server.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as one, socket.create_connection((host, int(port))) as two:
                for gone in (one, two):
                    gone.sendall(b"POST /predictions/one HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx")
                wait_for_queue(server, "one", 2)
            wait_for_queue(server, "one", 0)
        assert first.result().status_code == 200
    text = requests.get(f"{server.metrics_url}/metrics", timeout=HANG).text
    before = next(line for line in text.splitlines() if line.startswith("ts_inference_requests_total{") and '"one"' in line)
    assert ask(server, "one").status_code == 200
    text = requests.get(f"{server.metrics_url}/metrics", timeout=HANG).text
    after = next(line for line in text.splitlines() if line.startswith("ts_inference_requests_total{") and '"one"' in line)
    assert float(after.split()[-1]) - float(before.split()[-1]) == 1


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", "predictions/none", (404, "ModelNotFoundException")),
        ("POST", "predictions/one/9.9", (404, "ModelVersionNotFoundException")),
        ("POST", "v2/models/one/versions/9.9/infer//", (404, "ModelVersionNotFoundException")),
        ("DELETE", "predictions/one", (405, "MethodNotAllowedException")),
        ("GET", "nothing", (404, "ResourceNotFoundException")),
        ("POST", "ping/x", (404, "ResourceNotFoundException")),
    ],
)
def test_what_is_not_there_is_said_in_the_contracts_shape(
    server: AsgiServer, method: str, path: str, wanted: tuple[int, str]
) -> None:
    """And with the client's own id."""
    answer = requests.request(method, f"{server.url}/{path}", headers={"x-request-id": "mine"}, timeout=HANG)
    assert error(answer) == wanted
    assert answer.headers["x-request-id"] == "mine"


def test_what_a_handler_of_ones_own_gets(server: AsgiServer) -> None:
    """The same as on TorchServe, whose tests ask it too."""
    wait_for_worker(server, "one")
    assert_handed(server.url, "one")


ODD = """
import json
class Handler:
    def initialize(self, context):
        pass
    def handle(self, data, context):
        status, name, value = json.loads(bytes(data[0]["body"]))
        context.set_response_status(status, "", 0)
        context.set_response_header(0, name, value)
        return ["said"]
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsgiServer]:
    """A handler that answers with what status and header it is told."""
    folder = tmp_path_factory.mktemp("odd")
    mar(folder, "odd", handler=ODD)
    with AsgiServer(folder) as started:
        yield started


@pytest.mark.parametrize(
    ("status", "name", "value", "wanted"),
    [
        (418, "X-Own", "a", "a"),
        (200, "X-Own", " a\t", "a"),
        (200, "X-Own", "h\xe9 \u732b", "h\xe9 ?"),
        (200, "Content-Length", "2", None),
        (200, "Transfer-Encoding", "chunked", None),
        (600, "X-Own", "a", 500),
        (100, "X-Own", "a", 500),
        (200, "X Own", "a", 500),
        (200, "", "a", 500),
        (200, "X-Own", "a\r\nX-Other: b", 500),
    ],
)
def test_what_a_handler_sets_is_sent_or_the_answer_is_a_500(
    odd: AsgiServer, status: int, name: str, value: str, wanted: str | int | None
) -> None:
    """Never a connection that ends without an answer, nor one header that becomes two."""
    answer = requests.post(f"{odd.url}/predictions/odd", data=json.dumps([status, name, value]), timeout=HANG)
    if wanted == 500:
        assert error(answer) == (500, "InternalError")
        return
    assert (answer.status_code, answer.text) == (status, "said")
    assert wanted is None or answer.headers[name] == wanted


@pytest.mark.parametrize("path", ["predictions/one//", "v1/models/one:predict/", "v2/models/one/infer/"])
def test_slashes_at_the_end_say_nothing(server: AsgiServer, path: str) -> None:
    """Of a model's routes, as in TorchServe."""
    wait_for_worker(server, "one")
    assert requests.post(f"{server.url}/{path}", data=b"x", timeout=HANG).status_code == 200


def test_an_overlong_body_is_a_413_whether_its_length_is_said_or_not(store: Path, tmp_path: Path) -> None:
    """The limit is the configuration's `max_request_size`."""
    config = tmp_path / "config.properties"
    config.write_text("disable_token_authorization=true\nmax_request_size=1000\n")
    with AsgiServer(store, ["eight"], config=config) as server:
        url = f"{server.url}/predictions/eight"
        assert requests.post(url, data=b"x" * 1000, timeout=HANG).status_code == 200
        assert error(requests.post(url, data=b"x" * 1001, timeout=HANG)) == (413, "RequestTooLarge")
        chunked = (b"x" * 300 for _ in range(4))
        assert error(requests.post(url, data=chunked, timeout=HANG)) == (413, "RequestTooLarge")


def test_health_and_lists(server: AsgiServer) -> None:
    """Models and metrics are not on the public address; a worker does not inherit PYTHONPATH."""
    wait_for_worker(server, "one")
    get = requests.get
    assert get(f"{server.url}/v2/health/live", timeout=HANG).json() == {"live": True}
    assert get(f"{server.url}/v1/models", timeout=HANG).json() == {"models": ["eight", "one", "slow"]}
    assert get(f"{server.url}/v1/models/one", timeout=HANG).json() == {"name": "one", "ready": True}
    assert get(f"{server.url}/v2/models/one/versions/1.0/ready", timeout=HANG).json()["ready"] is True
    assert get(f"{server.url}/metrics", timeout=HANG).status_code == 404
    assert get(f"{server.url}/models", timeout=HANG).status_code == 404
    assert requests.post(f"{server.management_url}/models", timeout=HANG).status_code == 405
    described = get(f"{server.management_url}/models/one", timeout=HANG).json()
    assert get(f"{server.management_url}/models/one/1.0/", timeout=HANG).json() == described
    assert get(f"{server.management_url}/models/one/all", timeout=HANG).json() == described
    assert error(get(f"{server.management_url}/models/one/9", timeout=HANG)) == (404, "ModelVersionNotFoundException")
    assert error(get(f"{server.management_url}/models/none/all", timeout=HANG)) == (404, "ModelNotFoundException")
    assert ask(server, "one").json()["path"] == ""


def test_a_stop_answers_what_is_in_flight_and_in_the_queue(store: Path, gate: Gate) -> None:
    """And refuses who comes later."""
    with AsgiServer(store, ["one"]) as server, ThreadPoolExecutor(1) as pool:
        with held(server, "one", gate, 2) as asked:
            stopped = pool.submit(server.stop, HANG)
            wait_until(lambda: is_closed(server), "the door is shut")
            assert not stopped.done()
            assert not any(each.done() for each in asked)
        assert [each.result().status_code for each in asked] == [200] * 3
        assert stopped.result() is True
        with pytest.raises(requests.ConnectionError):
            ask(server, "one")


def test_a_page_whose_name_points_here_gets_no_answer(server: AsgiServer) -> None:
    """Neither of a model nor of what the server says itself, management and metrics included."""
    places = [f"{server.url}/predictions/one", f"{server.url}/ping"]
    places += [f"{server.management_url}/{path}" for path in ("models", "metrics")]
    for place in places:
        for host, refused in (("evil.example", True), ("localhost:1", False)):
            answer = requests.get(place, headers={"Host": host}, timeout=HANG)
            assert (answer.status_code == 403) is refused, (place, answer.text)


def test_a_model_that_does_not_load_is_named_with_its_reason(store: Path, tmp_path: Path) -> None:
    """So that the log need not be searched."""
    write_archive(tmp_path, "broken", seconds=-1)
    with (
        pytest.raises(ServeError, match=r"the model broken does not load: ValueError: seconds: -1 is negative"),
        AsgiServer(tmp_path),
    ):
        pass


def test_tokens_and_envelopes_are_refused_before_the_start(store: Path, tmp_path: Path) -> None:
    """Neither would do what it says."""
    config = tmp_path / "config.properties"
    config.write_text("job_queue_size=10\n")
    with pytest.raises(ServeError, match="the ASGI host has no tokens"), AsgiServer(store, config=config):
        pass
    write_archive(tmp_path, "wrapped", serviceEnvelope="json")
    with pytest.raises(ServeError, match="serviceEnvelope"), AsgiServer(tmp_path):
        pass


def test_only_what_is_configured_listens(server: AsgiServer) -> None:
    """Three ports of loopback; the workers talk over sockets that have no address."""
    import psutil

    listening = {
        each.laddr
        for pid in server.pids
        for each in psutil.Process(pid).net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN
    }
    urls = (server.url, server.management_url, server.metrics_url)
    assert {("127.0.0.1", int(url.rpartition(":")[2])) for url in urls} <= listening
    assert {host for host, _ in listening} == {"127.0.0.1"}
    assert len(listening) >= 3


def test_the_doctor_finds_nothing_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It asks for models, workers, metrics and an explanation where TorchServe has them."""
    mar(tmp_path, "small", settings={"batchSize": 8})
    with AsgiServer(tmp_path) as server:
        assert doctor.main([server.url]) == 0
    assert "small: explains a picture" in capsys.readouterr().out


def test_metrics_are_read_as_workers_write_them() -> None:
    """Counters add up, gauges are replaced, labels survive, and what is no metric is a line of the log."""
    registry = Registry()
    for value in (2, 3):
        assert registry.read_line(f"[METRICS]own_total.Count:{value}|#a:x,Level:Model|#type:COUNTER|#hostname:h,1")
        assert registry.read_line(f"noise [METRICS]own_time.ms:{value}.5|#a:x|#type:GAUGE|#hostname:h,1")
    assert not registry.read_line("a line of a model")
    text = registry.expose(["own_total", "own_time"])
    assert (
        text
        == '# TYPE own_time gauge\nown_time{a="x",Hostname="h"} 3.5\n# TYPE own_total counter\nown_total{a="x",Level="Model",Hostname="h"} 5.0\n'
    )


def test_a_new_version_takes_over_without_a_stop(store: Path, tmp_path: Path) -> None:
    """TorchServe's own calls, under load: registered beside the old one, made the default, the old one removed; none is lost."""
    (tmp_path / "store").mkdir()
    write_archive(tmp_path / "store", "cats", seconds=0.02, batch=4)
    config = tmp_path / "config.properties"
    config.write_text("disable_token_authorization=true\nenable_model_api=true\n")
    with AsgiServer(tmp_path / "store", config=config) as server, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()
        answers: list[tuple[int, str]] = []

        def client() -> None:
            while not stop.is_set():
                answer = ask(server, "cats")
                answers.append((answer.status_code, answer.json().get("version", answer.text)))

        def change(method: str, path: str) -> tuple[int, dict[str, object]]:
            answer = requests.request(method, f"{server.management_url}/models{path}", timeout=HANG)
            return answer.status_code, answer.json()

        asked = [pool.submit(client) for _ in range(4)]
        try:
            wait_until(lambda: answers)
            (tmp_path / "later").mkdir()
            write_archive(tmp_path / "later", "cats", version="2.0", seconds=0.02, batch=4)
            (tmp_path / "later" / "cats.mar").rename(tmp_path / "store" / "cats-2.mar")
            assert change("POST", "?url=../later/cats.mar")[0] == 400
            assert change("POST", "?url=none.mar")[0] == 400
            assert change("POST", "?url=cats-2.mar&initial_workers=1&synchronous=true")[0] == 200
            assert change("POST", "?url=cats-2.mar")[0] == 409
            assert ask(server, "cats/2.0").json()["version"] == "2.0"
            assert ask(server, "cats").json()["version"] == "1.0"
            assert change("DELETE", "/cats/1.0")[0] == 403
            assert change("PUT", "/cats/2.0/set-default")[0] == 200
            pids = server.pids
            assert change("DELETE", "/cats/1.0")[0] == 200
            late = len(answers)
            wait_until(lambda: len(answers) > late + 20)
        finally:
            stop.set()
        for future in asked:
            future.result()
        assert {status for status, _ in answers} == {200}, answers
        assert {version for _, version in answers} == {"1.0", "2.0"}
        assert ask(server, "cats").json()["version"] == "2.0"
        assert ask(server, "cats/1.0").status_code == 404
        assert len(server.pids) == len(pids) - 1


def test_models_do_not_change_unless_the_configuration_says_so(server: AsgiServer) -> None:
    """By default nobody can take a model out of service."""
    for method, path in (("POST", "models?url=one.mar"), ("DELETE", "models/one"), ("PUT", "models/one/1.0/set-default")):
        assert error(requests.request(method, f"{server.management_url}/{path}", timeout=HANG))[0] == 405
