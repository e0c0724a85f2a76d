"""The sockets of a server that another process runs: what they hold unsent, and its doors, which can be shut from outside.

TorchServe takes new connections until it dies. Linux 5.6 and newer let a parent copy a socket of its child, and a listening
socket that is shut down refuses new connections, while those that are open go on. In containers engines usually forbid the
copying (seccomp); there, and on other systems, the doors stay open.
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
KNOCKING = 1.0
"""Longest wait in seconds until the server has taken the connections that were there before its doors are shut."""


@dataclass(frozen=True)
class Row:
    """A socket of this machine: its inode, whether it listens, and its queues: bytes unsent and unread, or connections."""

    inode: str
    listens: bool
    queues: tuple[int, int]


def _rows(port: int) -> Iterator[Row]:
    """The TCP sockets whose own port this is (Linux; elsewhere none)."""
    for table in TABLES if sys.platform == "linux" else ():
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, queues, _, _, _, _, inode, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port:
                unsent, _, unread = queues.partition(":")
                yield Row(inode, state == LISTENING, (int(unsent, 16), int(unread, 16)))


def unsent(port: int) -> int:
    """Bytes that clients of `port` have not taken yet, or that the server has not read (Linux; elsewhere 0)."""
    return sum(sum(row.queues) for row in _rows(port) if not row.listens)


def shut_doors(pid: int, port: int) -> bool:
    """Makes process `pid` refuse new connections to `port`; False where nobody lets us, and it goes on taking them."""
    shut = False
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        for listener in _listeners(pid, port, stack):
            _wait_until_taken(port)
            listener.shutdown(socket.SHUT_RD)
            shut = True
    return shut


def _listeners(pid: int, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Copies of the sockets by which `pid` listens on `port`, closed with `stack`."""
    if sys.platform != "linux":
        return []
    process = os.pidfd_open(pid)
    stack.callback(os.close, process)
    inodes = {f"socket:[{row.inode}]" for row in _rows(port) if row.listens}
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


def _wait_until_taken(port: int) -> None:
    """A connection that nobody has taken yet would be cut off, whatever it has sent."""
    end = time.monotonic() + KNOCKING
    while any(row.listens and row.queues[1] for row in _rows(port)) and time.monotonic() < end:
        time.sleep(0.001)
