"""Looks into the sockets of a server that another process runs, and makes it refuse new connections.

TorchServe takes new connections until it dies. Linux 5.6 and newer let a parent copy a socket of its child, and a listening
socket that is shut down refuses new connections, while those that are open go on. In containers engines usually forbid the
copying (seccomp); there, and on other systems, new connections are accepted until the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENING = "0A"
PIDFD_GETFD = 438
"""The number of Linux's system call, which Python has no function for."""
ACCEPTING = 1.0
"""Longest wait in seconds until the server has accepted the connections that were made before."""


@dataclass(frozen=True)
class Socket:
    """A TCP socket of this machine.

    Attributes:
        queues: bytes unsent and bytes unread; of a socket that listens, the second is connections not accepted yet.
    """

    inode: str
    listens: bool
    queues: tuple[int, int]


def _sockets(port: int) -> Iterator[Socket]:
    """Yields the TCP sockets whose own port this is (Linux; elsewhere none)."""
    for table in TABLES if sys.platform == "linux" else ():
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, queues, _, _, _, _, inode, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port:
                unsent, _, unread = queues.partition(":")
                yield Socket(inode, state == LISTENING, (int(unsent, 16), int(unread, 16)))


def count_unsent_bytes(port: int) -> int:
    """Counts bytes that clients of `port` have not taken yet, or that the server has not read (Linux; elsewhere 0)."""
    return sum(sum(each.queues) for each in _sockets(port) if not each.listens)


def refuse_connections(pid: int, port: int) -> bool:
    """Makes process `pid` refuse new connections to `port`; returns False where that is not permitted, and they go on."""
    refused = False
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        for listener in _listeners(pid, port, stack):
            _wait_until_accepted(port)
            listener.shutdown(socket.SHUT_RD)
            refused = True
    return refused


def _listeners(pid: int, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Copies the sockets by which `pid` listens on `port`; they are closed with `stack`."""
    if sys.platform != "linux":
        return []
    process = os.pidfd_open(pid)
    stack.callback(os.close, process)
    inodes = {f"socket:[{each.inode}]" for each in _sockets(port) if each.listens}
    call = ctypes.CDLL(None, use_errno=True).syscall
    copies = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(entry.readlink()) in inodes:
                number = call(PIDFD_GETFD, process, int(entry.name), 0)
                if number < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                copies.append(stack.enter_context(socket.socket(fileno=number)))
    return copies


def _wait_until_accepted(port: int) -> None:
    """Waits, because a connection that is not accepted yet would be cut off, whatever it has sent."""
    end = time.monotonic() + ACCEPTING
    while any(each.listens and each.queues[1] for each in _sockets(port)) and time.monotonic() < end:
        time.sleep(0.001)
