"""Clients that are slow, broken or gone, one connection each: what they do must not touch anybody else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
from PIL import Image
from tests.support.build import encoded

from benchmarks.survival.hardships import Row, all_again, workers
from benchmarks.survival.traffic import EXAMPLES, HANG, Ask, Served, Traffic, wait_until

Client = Callable[[socket.socket, Ask], str]
"""Does its worst with a connection; returns what is wrong with what it got, or ""."""


def head(ask: Ask, length: int | None = None, **headers: str) -> bytes:
    """A request's first lines."""
    lines = {"host": "localhost", "content-length": str(len(ask.body) if length is None else length), **ask.headers, **headers}
    return "".join([f"POST {ask.path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]).encode()


def half_sent(connection: socket.socket, ask: Ask) -> str:
    """Stops in the middle of the body, waits, and goes."""
    connection.sendall(head(ask) + ask.body[: len(ask.body) // 2])
    time.sleep(1)
    return ""


def half_head(connection: socket.socket, ask: Ask) -> str:
    """Stops in the middle of a header."""
    connection.sendall(head(ask)[:-20])
    time.sleep(1)
    return ""


def gone(connection: socket.socket, ask: Ask) -> str:
    """Sends all, and resets the connection without waiting for the answer."""
    connection.sendall(head(ask) + ask.body)
    time.sleep(0.02)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return ""


def half_closed(connection: socket.socket, ask: Ask) -> str:
    """Closes its side after the request, and still reads: it may get its answer or none, but no other."""
    connection.sendall(head(ask) + ask.body)
    connection.shutdown(socket.SHUT_WR)
    status, _ = _read(connection)
    return "" if status in (0, 200) else f"status {status}"


def slow_sender(connection: socket.socket, ask: Ask) -> str:
    """Sends the body in twenty pieces, and gets its answer."""
    connection.sendall(head(ask))
    step = -(-len(ask.body) // 20)
    for start in range(0, len(ask.body), step):
        connection.sendall(ask.body[start : start + step])
        time.sleep(0.1)
    status, _ = _read(connection)
    return "" if status == 200 else f"status {status}"


def slow_reader(connection: socket.socket, ask: Ask) -> str:
    """Takes a picture of megabytes in small sips, and gets all of it."""
    connection.sendall(head(ask, accept="image/png") + ask.body)
    status, body = _read(connection, sip=65536, pause=0.02)
    return (
        ""
        if status == 200 and body.startswith(b"\x89PNG") and body.endswith(b"IEND\xaeB`\x82")
        else f"status {status}, {len(body)}"
    )


def never_reads(connection: socket.socket, ask: Ask) -> str:
    """Asks for megabytes, and goes without having read one."""
    connection.sendall(head(ask, accept="image/png") + ask.body)
    time.sleep(2)
    return ""


def garbage(connection: socket.socket, ask: Ask) -> str:
    """Speaks no HTTP, as who tries TLS on a plain port."""
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + ask.body[:500])
    status, _ = _read(connection)
    return "" if status in (0, 400, 408, 431) else f"status {status}"


def longer_than_said(connection: socket.socket, ask: Ask) -> str:
    """Sends more than it said: the rest is read as a request of its own, and refused."""
    connection.sendall(head(ask, len(ask.body) - 1000) + ask.body)
    status, _ = _read(connection)
    return "" if status in (200, 400) else f"status {status}"


def bad_chunks(connection: socket.socket, ask: Ask) -> str:
    """Chunked, with a length that is none."""
    start = head(ask).replace(f"content-length: {len(ask.body)}".encode(), b"transfer-encoding: chunked")
    connection.sendall(start + b"zz\r\n" + ask.body[:100] + b"\r\n0\r\n\r\n")
    status, _ = _read(connection)
    return "" if status in (0, 400, 408, 431) else f"status {status}"


def large_head(connection: socket.socket, ask: Ask) -> str:
    """A header of 100 kB."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(head(ask, filler="x" * 100_000) + ask.body)
    status, _ = _read(connection)
    return "" if status in (0, 400, 413, 431) else f"status {status}"


CLIENTS: Sequence[Client] = (
    half_sent, half_head, gone, half_closed, slow_sender, slow_reader, never_reads,
    garbage, longer_than_said, bad_chunks, large_head,
)  # fmt: skip


def annoyed(server: Served, traffic: Traffic, *, model: str, rounds: int, at_once: int, clients: int) -> Row:
    """Each of `CLIENTS`, `rounds` times, `at_once` together, while others ask as usual."""
    with Image.open(EXAMPLES / "cat.jpg") as cat:
        large = bytes(encoded(cat.resize((1600, 1064)), "JPEG"))
    ask = Ask(f"/explanations/{model}", large)
    process = psutil.Process(server.pids[0])
    before, staff = process.num_fds(), {each.pid for each in workers(server)}
    complaints: list[str] = []
    lock = threading.Lock()

    def one(client: Client) -> None:
        try:
            with socket.create_connection((traffic.host, traffic.port), timeout=HANG) as connection:
                said = client(connection, ask)
        except TimeoutError:
            said = "no answer, and no end"
        except OSError:  # the server hung up, which is its right
            said = "" if client not in (slow_sender, slow_reader) else "the server hung up"
        if said:
            with lock:
                complaints.append(f"{client.__name__}: {said}")

    begun = time.monotonic()
    with traffic.running(clients), ThreadPoolExecutor(at_once) as pool:
        for future in [pool.submit(one, client) for _ in range(rounds) for client in CLIENTS]:
            future.result()
    row = Row(
        "slow and broken clients", f"{rounds} each of {len(CLIENTS)} kinds, {at_once} at once, beside {clients} good clients",
        traffic.since(begun), complaints=complaints,
    ).allow()  # fmt: skip
    try:
        took = wait_until(lambda: process.num_fds() <= before + 8, "the connections closed", 60)
        row.figures = f"all connections closed {took:.1f} s after; {before} descriptors before, {process.num_fds()} after"
    except TimeoutError:
        row.complaints.append(f"connections stay open: {before} descriptors before, {process.num_fds()} after")
    row.complaints += [] if {each.pid for each in workers(server)} == staff else ["a worker was replaced"]
    row.complaints += all_again(traffic)
    return row


def _read(connection: socket.socket, sip: int = 2**20, pause: float = 0) -> tuple[int, bytes]:
    """Status and body of one answer; 0 where the server closed without one."""
    came = b""
    while b"\r\n\r\n" not in came:
        part = connection.recv(sip)
        if not part:
            return 0, came
        came += part
    start, _, body = came.partition(b"\r\n\r\n")
    lines = start.decode("latin-1").split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        time.sleep(pause)
        part = connection.recv(sip)
        if not part:
            break
        body += part
    return int(lines[0].split()[1]), body
