"""`scripts/serve.py` as a process: signals, exit statuses, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from tests.support.processes.serving import LINUX, Command, ask, connections_can_be_refused, log
from tests.support.processes.waiting import HANG


@pytest.mark.live
def test_requests_finish_before_the_end(store: Path, pool: ThreadPoolExecutor) -> None:
    """After Ctrl-C, requests in the worker and in the queue get their 200; then the exit status is 0 and no process is left. New
    connections are refused at once, where the system lets us. Under nohup it goes on when its terminal is closed before."""
    with Command(store, "--models", "slow", "--drain", "120", ignored=[signal.SIGHUP]) as command:
        url = command.url()
        assert_goes_on(command, signal.SIGHUP)
        answers = ask(pool, url, "slow", times=5)
        os.killpg(command.process.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
        if connections_can_be_refused():
            end = pool.submit(end_of_connections, url)
            assert end.result(HANG) == "refused"
            assert not all(answer.done() for answer in answers)
        assert [answer.result() for answer in answers] == [200] * 5
        assert command.process.wait(HANG) == 0, command.errors.read_text()
        assert len(command.tree) == 2
        assert not command.left()
        assert len(command.output.read_text().splitlines()) == 1


@pytest.mark.live
def test_second_signal_stops_at_once(store: Path, pool: ThreadPoolExecutor) -> None:
    """A second signal cuts off what the first one let go on, busy workers too; the exit status tells its number."""
    with Command(store, "--models", "stuck", "--drain", "1000") as command:
        (answer,) = ask(pool, command.url(), "stuck")
        command.process.send_signal(signal.SIGTERM)
        command.wait_for(command.errors, "stopping")
        assert not answer.done()
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(HANG) == 128 + signal.SIGINT
        assert not command.left()
        assert answer.result() == 0


@pytest.mark.live
def test_the_time_of_drain_runs_out(store: Path, pool: ThreadPoolExecutor) -> None:
    """A request that takes longer than --drain allows is cut off; the command says so, and its exit status is 1. A Ctrl-C before,
    which it does not hear in a shell's background, cuts off nothing."""
    with Command(store, "--models", "stuck", "--drain", "1", ignored=[signal.SIGINT]) as command:
        (answer,) = ask(pool, command.url(), "stuck")
        assert_goes_on(command, signal.SIGINT)
        assert not answer.done()
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(HANG) == 1
        assert "stopped before every request was answered: --drain gave 1 s" in command.errors.read_text()
        assert answer.result() == 0
        assert not command.left()


@pytest.mark.live
def test_signal_before_ready(store: Path) -> None:
    """SIGTERM while models load ends the start, with 143, and leaves no process."""
    with Command(store, "--models", "quick") as command:
        command.wait_for(command.errors, "starting TorchServe")
        assert command.tree
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(HANG) == 143
        assert not command.left()


@pytest.mark.live
@LINUX
def test_nothing_outlives_a_killed_command(store: Path) -> None:
    """SIGKILL, after which serve.py can do nothing, takes Java and the workers with it."""
    with Command(store, "--models", "quick") as command:
        command.url()
        assert len(command.tree) == 2
        command.process.kill()
        command.process.wait()
        assert not command.left()


@pytest.mark.live
def test_end_of_java_ends_the_command(store: Path) -> None:
    """When Java dies, serve.py says so, ends what is left, and fails."""
    with Command(store, "--models", "quick") as command:
        command.url()
        command.tree[0].kill()
        assert command.process.wait(HANG) == 1
        assert "TorchServe ended by itself" in command.errors.read_text()
        assert not command.left()


def end_of_connections(url: str) -> str:
    """Connects again and again, without asking anything, until that is refused."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            return "refused"
        time.sleep(0.02)
    return "accepted"


def assert_goes_on(command: Command, ignored: signal.Signals) -> None:
    """That a signal, which the command was told to ignore when it started, does not stop it."""
    os.killpg(command.process.pid, ignored)
    time.sleep(1)
    assert "stopping" not in command.errors.read_text()
    assert command.process.poll() is None
    assert all(each.is_running() for each in command.tree)


def end_of_service(url: str, model: str) -> str:
    """Asks again and again, over a new connection each time; the error that ends it."""
    while True:
        try:
            assert requests.post(f"{url}/predictions/{model}", data=b"x", timeout=HANG).status_code == 200
        except requests.ConnectionError as error:
            return str(error)


@pytest.mark.live
@LINUX
def test_a_model_that_torchserve_gives_up_ends_the_command(store: Path, pool: ThreadPoolExecutor) -> None:
    """Its requests wait without end; the command says why its worker does not come back, answers what other models have in hand, and
    fails, so that it is started anew."""
    broken = store.parent / "broken"
    try:
        with Command(store, "--models", "fragile", "slow", "--max-outage", "15", "--drain", "5") as command:
            url = command.url()
            broken.touch()
            host, _, port = url.rpartition(":")
            (model,) = requests.get(f"{host}:{int(port) + 1}/models/fragile", timeout=HANG).json()
            psutil.Process(model["workers"][0]["pid"]).kill()
            command.wait_for(log(command, url), "Auto recovery failed again")
            (answer,) = ask(pool, url, "fragile")
            ends = [pool.submit(end_of_service, url, "slow") for _ in range(2)]
            assert command.process.wait(HANG) == 1
            (error,) = command.errors.read_text().splitlines()[2:]
            reason = 'error: the model "fragile" has had no ready worker for \\d+ s, .*: OSError: the disk is gone'
            assert re.fullmatch(reason, error)
            assert answer.result() == 0
            assert not command.left()
            if connections_can_be_refused():
                assert all("refused" in end.result() for end in ends), [end.result() for end in ends]
    finally:
        broken.unlink()


@pytest.mark.live
def test_model_that_does_not_load(store: Path) -> None:
    """A worker's own reason is the one message, the exit status is 1, and nothing is tried again."""
    with Command(store, "--models", "quick", "bad") as command:
        assert command.process.wait(HANG) == 1
        assert command.errors.read_text().splitlines()[1:] == [
            'error: the model "bad" does not load: ValueError: seconds: -1 is negative'
        ]
        assert command.output.read_text() == ""
