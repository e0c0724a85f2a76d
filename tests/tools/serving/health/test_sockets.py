"""A server's sockets: what they hold, and how they refuse new connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.processes.serving import LINUX, connections_can_be_refused
from tests.support.processes.waiting import HANG

from camserve.tools.serving.health import sockets


@LINUX
def test_replies_that_lie_unsent_are_seen() -> None:
    """A reply that its client has not taken counts as work; the same port is quiet once it is read."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        port = listener.getsockname()[1]
        with accepted:
            assert sockets.count_unsent_bytes(port) == 0
            client.sendall(b"12345")
            assert sockets.count_unsent_bytes(port) == 5
            accepted.recv(5)
            assert sockets.count_unsent_bytes(port) == 0


DOORMAN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as door:
    print(door.getsockname()[1], flush=True)
    sys.stdin.readline()
    guests = [door.accept()[0] for _ in range(2)]
    sys.stdin.readline()
    for guest in guests:
        guest.sendall(guest.recv(100))
    sys.stdin.readline()
"""


@LINUX
def test_doors_that_are_shut(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's listening socket refuses who comes new; connections that are open, or wait to be taken, go on."""
    monkeypatch.setattr(sockets, "ACCEPTING", HANG)
    command = [sys.executable, "-c", DOORMAN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as doorman:
        try:
            assert doorman.stdin
            assert doorman.stdout
            port = int(doorman.stdout.readline())
            assert not sockets.refuse_connections(doorman.pid, port + 1)
            if not connections_can_be_refused():
                pytest.skip("the system lets nobody copy another's socket")
            with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as two:
                one.sendall(b"before")
                shut = pool.submit(sockets.refuse_connections, doorman.pid, port)
                time.sleep(0.3)
                doorman.stdin.write("take them\n")
                assert shut.result()
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
                two.sendall(b"after")
                doorman.stdin.write("answer\n")
                assert [one.recv(100), two.recv(100)] == [b"before", b"after"]
        finally:
            doorman.kill()


def test_doors_that_cannot_be_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not let us, as in most containers, that is told, and nothing else happens."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        monkeypatch.setattr(sockets, "PIDFD_GETFD", 100_000)  # no system call
        assert not sockets.refuse_connections(os.getpid(), port)
        socket.create_connection(("127.0.0.1", port)).close()
    assert not sockets.refuse_connections(2**22 + 1, port)  # no process
