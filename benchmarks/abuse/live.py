"""The bad requests over HTTP, as clients send them, to a TorchServe of our own: `run.py --live`."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psutil
from tests.support.build import mar

from benchmarks.abuse.case import Case
from benchmarks.abuse.check import complain
from camserve.tools.archive.archive import Response
from camserve.tools.commands.serve import Server

OWN = {
    "BadRequestException": (400,),
    "ErrorDataDecoderException": (500,),
}
"""TorchServe's own errors, and the statuses with which they are right: those of a request that no worker got to see."""
STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


class Live:
    """A server's model, asked as many requests at once as a batch holds; see `run.InProcess`.

    `faults` gets what the log must not hold: lines that do not begin as TorchServe's do, and faults of camserve's.
    """

    def __init__(self, server: Server, model: str, faults: list[str]) -> None:
        self.server, self.model, self.faults = server, model, faults
        self._pids = server.pids

    def ask(self, cases: Sequence[Case]) -> list[Response]:
        """All at once, so that they meet in one batch."""
        with ThreadPoolExecutor(len(cases)) as threads:
            return list(threads.map(self._answer, cases))

    def judge(self, sent: Case, answer: Response) -> str:
        """As `complain`, but for what is TorchServe's own, and for pictures whose form or header HTTP has changed."""
        if self.server.pids != self._pids:
            self._pids = self.server.pids
            return f"a process ended or began; then {answer.status}: {answer.body[:200]!r}"
        if answer.status == 413 and not answer.body:
            return ""
        if answer.status in OWN.get(_kind(answer), ()):
            return ""
        return complain(replace(sent, allowed=(*sent.allowed, 400), kinds=()), answer)

    def memory(self) -> float:
        """The workers' memory, in MiB; of those in a container, which have other numbers there, nothing."""
        return sum(float(psutil.Process(pid).memory_info().rss) for pid in self._workers()) / 2**20

    def peak(self) -> float:
        """The most memory that the workers ever took, in MiB (Linux); see `memory`."""
        states = [Path(f"/proc/{pid}/status").read_text() for pid in self._workers()]
        return sum(int(found[1]) for state in states if (found := re.search(r"VmHWM:\s*(\d+) kB", state))) / 1024

    def _workers(self) -> list[int]:
        return [pid for pid in self.server.pids[1:] if psutil.pid_exists(pid)]

    def _answer(self, sent: Case) -> Response:
        place = urlsplit(self.server.url)
        route = "explanations" if sent.row.explain else "predictions"
        head, body = message(sent, f"/{route}/{self.model}", place.netloc)
        with socket.create_connection((place.hostname or "", place.port or 80), timeout=300) as connection:
            with contextlib.suppress(ConnectionError):  # the answer may come before all is sent
                connection.sendall(head + body)
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            content = reply.read()
            headers = {name.lower(): value for name, value in reply.getheaders() if name.lower().startswith("x-explain-")}
            return Response(reply.status, reply.getheader("content-type") or "", headers, content)


def message(sent: Case, path: str, host: str) -> tuple[bytes, bytes]:
    """The head and the body of the request that makes a frontend hand this row to its worker."""
    body, kind = _body(sent)
    given = {name: _one_line(value) for name, value in sent.row.headers.items()}
    if kind.startswith(("multipart", "application/x-www-form-urlencoded")):
        given = {name: value for name, value in given.items() if name.lower() != "content-type"}
    if kind and not any(name.lower() == "content-type" for name in given):
        given["Content-Type"] = kind
    fixed = {"Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in ({"Host": host} | given | fixed).items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace"), body


def _body(sent: Case) -> tuple[bytes, str]:
    fields = sent.row.fields
    if set(fields) != {"body"}:
        if "urlencoded" in sent.row.headers.get("Content-Type", ""):
            return urlencode({_one_line(name): _text(value) for name, value in fields.items()}).encode(), (
                "application/x-www-form-urlencoded"
            )
        return _form(fields)
    value = fields["body"]
    if sent.raw is not None and sent.file is None:
        return sent.raw, ""  # its content type is among its headers
    if isinstance(value, (bytes, bytearray)):
        return bytes(value), "application/octet-stream"
    if isinstance(value, str):
        return value.encode("utf-8", "replace"), "text/plain"
    return json.dumps(value).encode(), "application/json"


def _form(fields: Any) -> tuple[bytes, str]:
    """multipart/form-data: bytes as files where they are `data`, values that are no bytes as files of their type."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in fields.items():
        quoted = _one_line(name).replace('"', "%22")
        head = f'Content-Disposition: form-data; name="{quoted}"'
        if isinstance(value, str):
            head += '; filename="a.txt"\r\nContent-Type: text/plain'
        elif not isinstance(value, (bytes, bytearray)):
            head += '; filename="a.json"\r\nContent-Type: application/json'
        elif name == "data":
            head += '; filename="a.bin"\r\nContent-Type: application/octet-stream'
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode("utf-8", "replace") + _text(value) + b"\r\n")
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _text(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\0]", " ", text)


def _kind(answer: Response) -> str:
    try:
        return str(json.loads(answer.body)["type"])
    except (ValueError, TypeError, KeyError):
        return ""


@contextlib.contextmanager
def live(archive: Path | None, explain: dict[str, Any], config: Path) -> Iterator[Live]:
    """A server with this archive, or with a small classifier of seven classes whose labels attack."""
    faults: list[str] = []

    def look(line: str) -> None:
        if line and (not STAMPED.match(line) or "request failed" in line or "picture failed" in line):
            faults.append(f"logged: {line[:300]!r}")

    with tempfile.TemporaryDirectory() as folder:
        store, name = Path(folder), "small"
        if archive is None:
            mar(store, name, explain=explain, classes=7, settings={"batchSize": 8, "maxBatchDelay": 20})
        else:
            store, name = archive.resolve().parent, archive.stem
        with Server(store, [name], config=config, port=0, sinks=lambda _: ("the benchmark", [look])) as server:
            faults.clear()
            yield Live(server, name, faults)
