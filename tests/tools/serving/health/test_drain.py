"""When a server counts as idle."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from tests.support.processes.serving import LINUX
from tests.support.processes.waiting import HANG, wait_until
from tests.tools.serving.doubles import ScriptedManagement, versions

from camserve.tools.commands.serve import Server
from camserve.tools.serving.health import drain
from camserve.tools.serving.process.signal_flag import SignalFlag


def drained(server: Server, limit: float) -> bool:
    """Whether a wait of `limit` seconds, as `stop` does it, finds the server idle; it goes on running."""
    port = int(server.url.rpartition(":")[2])
    return drain.Drain(server._management, server.pids[0], port, lambda: False).wait(limit, SignalFlag())


@pytest.mark.live
@LINUX
def test_the_first_idle_moment_ends_a_stop_that_lasts(quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that never leave it quiet for long are answered; in the second half of the time a moment is enough."""
    monkeypatch.setattr(drain, "SLACK", 1000.0)
    began = time.monotonic()
    assert drained(quick, limit=20) is True
    assert time.monotonic() - began > 10


@pytest.mark.parametrize("seen", [[False, False, True, False, False], [False, True, False, False]], ids=["last", "first"])
def test_the_first_and_the_last_look_count(seen: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """What Java does before it is asked, or what comes while the others are taken, keeps the server from being idle, and is waited
    for."""
    looks = iter(seen)
    monkeypatch.setattr(drain, "has_runnable_thread", lambda _java: next(looks))
    monkeypatch.setattr(drain, "observe", lambda _pid: (False, 0))
    monkeypatch.setattr(drain, "SLACK", 0.0)
    idle = versions("READY")
    idle[0] |= {"jobQueueStatus": {"pendingRequests": 0}, "maxBatchDelay": 1, "workers": [{"pid": 1}]}
    watch = drain.Drain(ScriptedManagement(idle), 1, 1, lambda: False)  # type: ignore[arg-type]
    assert watch.wait(HANG, SignalFlag())
    assert list(looks) == []


@pytest.mark.live
def test_java_that_has_not_begun_is_waited_for(quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Java's that waits for a processor may hold a request that nobody has counted yet."""
    monkeypatch.setattr(drain, "has_runnable_thread", lambda _java: True)
    assert drained(quick, limit=2) is False


@LINUX
def test_a_worker_that_sleeps_is_at_work() -> None:
    """A process that waits for something else than its next command is busy, though it uses no processor time."""
    ours, theirs = socket.socketpair()
    reads = "import socket, sys; print(flush=True); socket.socket(fileno=int(sys.argv[1])).recv(1)"
    sleeps = "import time; print(flush=True); time.sleep(10000)"
    with (
        ours,
        theirs,
        subprocess.Popen([sys.executable, "-c", reads, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=-1) as idle,
        subprocess.Popen([sys.executable, "-c", sleeps], stdout=-1) as busy,
    ):
        try:
            for process in (idle, busy):
                assert process.stdout
                process.stdout.readline()
            wait_until(lambda: not drain.observe(idle.pid)[0])
            assert [drain.observe(process.pid)[0] for process in (idle, busy)] == [False, True]
            assert drain.observe(idle.pid) == drain.observe(idle.pid)
        finally:
            idle.kill()
            busy.kill()


@LINUX
def test_java_that_waits_for_a_processor_is_at_work() -> None:
    """A thread that runs, or would, counts, whatever its name; one that sleeps does not."""
    idles = "import sys, threading; print(flush=True); sys.stdin.read()"
    spins = f"import threading, time; threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start(); {idles}"
    with (
        subprocess.Popen([sys.executable, "-c", idles], stdin=-1, stdout=-1) as idle,
        subprocess.Popen([sys.executable, "-c", spins], stdin=-1, stdout=-1) as busy,
    ):
        try:
            for process in (idle, busy):
                assert process.stdout
                process.stdout.readline()
            wait_until(lambda: not drain.has_runnable_thread(idle.pid))
            assert [drain.has_runnable_thread(process.pid) for process in (idle, busy)] == [False, True]
        finally:
            idle.kill()
            busy.kill()
    assert not drain.has_runnable_thread(idle.pid)
