"""Abuse: a slice of `benchmarks/abuse/run.py`, which sends thousands, and bad bodies to a live server."""

from __future__ import annotations

import json
import logging
import socket
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from benchmarks.abuse import run as abuse
from benchmarks.abuse.bad_pictures import good_picture
from benchmarks.abuse.case import Case
from benchmarks.abuse.check import complain
from benchmarks.abuse.live import Live, message
from tests.support.build import archive, encoded, noise
from tests.support.processes.waiting import HANG

from camserve.tools.archive.archive import Response, Row, load_service
from camserve.tools.commands.serve import Server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier that the benchmark abuses."""
    return load_service(archive(tmp_path_factory.mktemp("one") / "small", abuse.SMALL, classes=7))


def test_six_hundred_bad_requests_are_answered_and_change_nothing(service: Any) -> None:
    """Every category: a 4xx or a right 200, no fault of ours in the log, and a good request's answer as ever."""
    report = abuse.run(abuse.InProcess(service), 600, seed=1)

    assert report.failures == []
    assert report.inputs == 600
    assert min(sum(each.values()) for each in report.statuses.values()) >= 600 // len(abuse.CATEGORIES)


def error(status: int, kind: str, message: str) -> Response:
    """An error as the handler sends it."""
    return Response(status, "application/json", {}, json.dumps({"code": status, "type": kind, "message": message}).encode())


PNG = bytes(encoded(noise(20, 10)))
SENT = Case(Row({}), (200, 400), ("InvalidOption",), file=PNG)
SIZE = '{"image": {"width": %d, "height": %d}}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(400, "InvalidOption", "top_k: expected a whole number"), ""),
        (Response(200, "application/json", {}, (SIZE % (20, 10)).encode()), ""),
        (error(500, "InternalError", "sorry"), "status 500"),
        (error(400, "NoImage", "the body is empty"), "type NoImage"),
        (error(400, "InvalidOption", "cannot open /usr/lib/model.pt"), "message"),
        (error(400, "InvalidOption", "<Tensor object at 0x7f001234>"), "message"),
        (error(400, "InvalidOption", "two\nlines"), "message"),
        (Response(400, "text/plain", {}, b'{"error": 1}'), "not the shape"),
        (Response(200, "application/json", {"x": "a\r\nb"}, b"{}"), "headers"),
        (Response(200, "application/json", {}, (SIZE % (20, 11)).encode()), "the picture is"),
    ],
)
def test_the_benchmark_sees_what_is_wrong(answer: Response, words: str) -> None:
    """Or its figures would say nothing."""
    assert complain(SENT, answer).startswith(words)
    assert bool(complain(SENT, answer)) == bool(words)


def test_the_benchmark_sees_faults_neighbours_and_memory(service: Any) -> None:
    """An exception out of the service, a fault in the log, a changed answer and growth are failures."""

    class Broken:
        """Answers as the service does, until it has answered four batches."""

        batches = 0

        def predict(self, batch: Any) -> Any:
            """One batch."""
            self.batches += 1
            if self.batches == 2:
                raise RuntimeError("out")
            if self.batches == 3:
                logging.getLogger("camserve.pipeline.pipeline").error("one request failed")
            if self.batches == 4:
                batch = [batch[1], *batch[1:]]
            return service.predict(batch)

    report = abuse.run(abuse.InProcess(Broken()), 9, seed=0, batch=4)

    assert [
        words in failure for words, failure in zip(("out of the service", "logged", "changed"), report.failures, strict=True)
    ] == [True] * 3
    assert abuse.verdicts(abuse.Report(memory=[100, 100 + abuse.LIMIT])) == []
    assert abuse.verdicts(abuse.Report(memory=[100, 500, 500, 510])) == []
    assert "memory grew" in abuse.verdicts(abuse.Report(memory=[100, 500, 500, 501 + abuse.LIMIT]))[0]


# ------------------------------------------------------------------ a live server


@pytest.mark.live
def test_live_two_hundred_bad_requests_end_no_worker(live: Server) -> None:
    """Every category over HTTP, as forms, headers and bodies, through TorchServe's own frontend and codec."""
    report = abuse.run(Live(live, "hostile", []), 200, seed=2)

    assert report.failures == []
    assert report.inputs == 200
    assert min(sum(each.values()) for each in report.statuses.values()) >= 200 // len(abuse.CATEGORIES)


def test_live_the_benchmark_sees_a_worker_that_ended() -> None:
    """And takes TorchServe's own errors for what they are, but not of a worker that died."""

    class Fake:
        """A server whose second worker is another from the second look on."""

        looks = 0

        @property
        def pids(self) -> list[int]:
            """Changes once."""
            self.looks += 1
            return [1, 2] if self.looks < 6 else [1, 3]

    judge = Live(Fake(), "small", []).judge  # type: ignore[arg-type]

    assert judge(SENT, error(500, "ErrorDataDecoderException", "Bad string")) == ""
    assert judge(SENT, Response(413, "", {}, b"")) == ""
    assert "status 500" in judge(SENT, error(500, "InternalServerException", "Worker died."))
    assert judge(SENT, error(400, "InvalidImage", "data: expected a complete PNG picture")) == ""
    assert "a process ended" in judge(SENT, error(400, "InvalidImage", "data: expected a complete PNG picture"))


@pytest.mark.parametrize(
    ("row", "kind", "gist"),
    [
        (Row({"body": bytearray(b"abc")}), "application/octet-stream", b"abc"),
        (Row({"body": "abc"}), "text/plain", b"abc"),
        (Row({"body": {"data": [1, None]}}), "application/json", b'{"data": [1, null]}'),
        (Row({"data": bytearray(b"abc"), "target": "x"}), "multipart/form-data", b'name="target"; filename="a.txt"'),
        (Row({"a\r\nb": "c d"}, {"Content-Type": "application/x-www-form-urlencoded"}), "application/x-www", b"a++b=c+d"),
        (Row({"body": bytearray(b"abc")}, {"Content-Type": "text/html", "X": "1\r\n2"}), "text/html\r\nX: 1  2", b"abc"),
    ],
)
def test_the_benchmark_sends_a_row_as_a_client_would(row: Row, kind: str, gist: bytes) -> None:
    """A body under its content type, a form as a form, and no header that makes another."""
    head, body = message(Case(row, (200,)), "/predictions/m", "localhost")

    assert head.startswith(b"POST /predictions/m HTTP/1.1\r\nHost: localhost\r\n")
    assert f"\r\nContent-Type: {kind}".encode() in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    assert gist in body


def explained(server: Server, picture: bytes) -> Any:
    """The answer of an explanation that must be there."""
    answer = requests.post(f"{server.url}/explanations/hostile", data=picture, timeout=HANG)
    assert answer.status_code == 200, answer.text
    return answer.json()


HEADERS = [
    b"X-Explain-Target: Wei\xdf",
    b"X-Explain-Target: Wei\xc3\x9f \xe7\x8c\xab",
    b"X-Explain-Target: " + b"9" * 4000,
    b"X-Explain-: 1",
    b"X-Explain-Method:",
    b"Accept: " + b"a/b, " * 1000,
    b"describe: True",
    b"explain: False",
    b"Inference-Header-Content-Length: 99999999999999999999",
    b"Content-Type: application/json; charset=\xff",
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Type: multipart/form-data; boundary=",
    b"Content-Type: multipart/mixed; boundary=x",
    b"Content-Encoding: gzip",
    b"Expect: 200-maybe",
    b"X-A: ${jndi:ldap://127.0.0.1/x}",
    b"\xff\xfe: \x01\x02",
    b"no colon",
    b"Transfer-Encoding: chunked",
]


@pytest.mark.live
def test_live_raw_headers_end_no_worker(live: Server) -> None:
    """Bytes that no HTTP library would send, on both routes: whatever TorchServe makes of them, the next answer is right."""
    before, wanted = live.pids, explained(live, good_picture())
    statuses = [raw(live, route, header) for route in ("explanations", "predictions") for header in HEADERS]

    assert explained(live, good_picture()) == wanted
    assert live.pids == before
    assert set(chain(statuses)) <= {b"200", b"400", b"404", b"406", b"413", b"417", b"500", b""}


def raw(server: Server, route: str, header: bytes) -> bytes:
    """The status of a POST with this line among its headers; empty where the connection was closed."""
    place, body = urlsplit(server.url), good_picture()
    lines = [f"POST /{route}/hostile HTTP/1.1".encode(), f"Host: {place.netloc}".encode(), header, b"Connection: close"]
    with socket.create_connection((place.hostname or "", place.port or 80), timeout=HANG) as connection:
        connection.sendall(b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body]))
        found = b""
        try:
            while b"\r\n" not in found and (part := connection.recv(4096)):
                found += part
        except OSError:
            return b""
    return found.split(b" ", 2)[1] if found else b""
