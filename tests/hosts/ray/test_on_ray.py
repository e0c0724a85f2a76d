"""Ray Serve: the contract's live tests, and what is answered when something ends, is full, takes too long, or is updated.

All in one file, so that one cluster serves them all; the last test ends it.
"""

# ruff: noqa: F403

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
from tests.hosts.test_contract_on_asgi import *
from tests.support.processes.ray_serving import (
    RayProcess,
    ask,
    clients,
    counted,
    error,
    replicas_of,
    wait_for_more,
    workers_of,
)
from tests.support.processes.serving import assert_handed, read_batch_sizes, write_archive
from tests.support.processes.waiting import HANG, Gate, wait_until

pytestmark = pytest.mark.live


ASKED, FULL = "ts_inference_requests_total{", 'camserve_host_unanswered_total{reason="full"'


# ------------------------------------------------------------------ what Ray Serve adds


def test_what_waits_is_taken_at_once_so_batches_are_full(live: RayProcess, gate: Gate) -> None:
    """What comes while the worker is busy goes in batches of 4, none of which waits for more, by the cluster's own metrics."""
    with ThreadPoolExecutor(6) as pool:  # Serve hands no more than 8 to a replica at once, questions of its own among them
        with gate:
            asked = [pool.submit(ask, live, "four")]
            gate.wait_held()
            asked += [pool.submit(ask, live, "four") for _ in range(5)]
            wait_until(lambda: counted(live, ASKED, "four") == 6)
        assert {each.result().status_code for each in asked} == {200}
    wait_until(lambda: sum(size * count for size, count in read_batch_sizes(live.metrics_url, "four").items()) == 6)
    assert read_batch_sizes(live.metrics_url, "four") == {1: 2, 4: 1}


def test_what_a_handler_of_ones_own_gets(live: RayProcess) -> None:
    """The same as on TorchServe, whose tests ask it too."""
    assert_handed(live.url, "two")


@pytest.fixture(scope="module")
def too_long(live: RayProcess) -> Iterator[Future[requests.Response]]:
    """A request whose worker is stopped until it is answered: the tests that are between make use of the time."""
    wait_until(lambda: len(workers_of(live, "two")) == 2)
    stopped = [psutil.Process(pid) for pid in workers_of(live, "two")]

    def ask_stopped() -> requests.Response:
        try:
            return ask(live, "two")
        finally:
            for each in stopped:
                with suppress(psutil.NoSuchProcess):  # the server has ended it
                    each.resume()

    for each in stopped:
        each.suspend()
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ask_stopped)


@pytest.mark.usefixtures("too_long")
def test_a_full_queue_is_a_503(live: RayProcess, gate: Gate) -> None:
    """The limit is the archive's own `jobQueueSize`; the others are answered; all are counted once."""
    before = [counted(live, name, "four") for name in (ASKED, FULL)]
    with ThreadPoolExecutor(26) as pool:  # 8 places at the replica, and 12 before it
        with gate:
            asked = [pool.submit(ask, live, "four") for _ in range(26)]
            wait_until(lambda: any(each.done() for each in asked), "one is refused")
            (described,) = requests.get(f"{live.management_url}/models/four", timeout=HANG).json()
            assert [each["status"] for each in described["workers"]] == ["READY"]  # too busy to say so itself
        answers = [each.result() for each in asked]
    refused = sum(each.status_code == 503 for each in answers)
    assert [counted(live, name, "four") - was for name, was in zip((ASKED, FULL), before, strict=True)] == [26, refused]
    assert {error(each) for each in answers if each.status_code != 200} == {(503, "QueueFull")}
    assert sum(each.status_code == 200 for each in answers) >= 12


@pytest.mark.usefixtures("too_long")
def test_a_killed_worker_costs_what_it_had_and_no_more(live: RayProcess, gate: Gate) -> None:
    """A JSON 503, though nothing else has happened; the replica stays, and starts another."""
    (pid,) = workers_of(live, "four")
    with ThreadPoolExecutor(1) as pool, gate:
        asked = pool.submit(ask, live, "four")
        gate.wait_held()
        os.kill(pid, signal.SIGKILL)
        assert error(asked.result()) == (503, "WorkerLost")
    wait_until(lambda: ask(live, "four").status_code == 200)
    assert workers_of(live, "four") != [pid]


@pytest.mark.usefixtures("too_long")
def test_a_killed_replica_costs_what_it_had_as_json(live: RayProcess, gate: Gate) -> None:
    """Though it was the only one; what comes later is answered by the next."""
    (replica,) = replicas_of(live, "four")
    with ThreadPoolExecutor(1) as pool, gate:
        asked = pool.submit(ask, live, "four")
        gate.wait_held()
        replica.kill()
        assert error(asked.result()) == (503, "WorkerLost")
    wait_until(lambda: ask(live, "four").status_code == 200)


def test_what_takes_too_long_is_a_504(too_long: Future[requests.Response]) -> None:
    """The limit is the archive's own `responseTimeout`."""
    assert error(too_long.result()) == (504, "Timeout")


def test_the_shipped_client_loses_nothing_where_a_replica_or_the_front_is_killed(live: RayProcess) -> None:
    """One of two replicas, and then the only front, in whose place another comes."""
    with clients(live, "two", 4) as got:
        wait_until(lambda: len(got) > 8)
        replicas_of(live, "two")[0].kill()
        wait_for_more(got, 8)
        wait_until(lambda: len(replicas_of(live, "two")) == 2)
        replicas_of(live, "@front")[0].kill()
        wait_for_more(got, 16)
    assert set(got) == {"1.0"}


def test_an_update_takes_the_place_of_the_old_version_and_loses_nothing(live: RayProcess, tmp_path: Path, gate: Gate) -> None:
    """The new replica is there before the old one goes; a broken one never takes its place."""
    folder = tmp_path / "store"
    folder.mkdir()
    write_archive(folder, "four", seconds=0.1, batch=4, version="2.0", gate=str(gate.path), responseTimeout=round(HANG))
    with clients(live, "four", 4) as got:
        updated = live.run(str(folder / "four.mar"))
        assert updated.returncode == 0, updated.stderr
        wait_until(lambda: "2.0" in got)
        wait_until(lambda: got[-16:] == ["2.0"] * 16)
    assert set(got) == {"1.0", "2.0"}
    assert error(ask(live, "four/1.0")) == (404, "ModelVersionNotFoundException")
    assert ask(live, "four/2.0").status_code == 200
    write_archive(tmp_path, "four", seconds=-1, version="3.0")
    refused = live.run(str(tmp_path / "four.mar"))
    assert refused.returncode == 1
    assert "the model four does not load: ValueError: seconds: -1 is negative; what ran before goes on" in refused.stderr
    assert ask(live, "four").json()["version"] == "2.0"


def test_what_listens(live: RayProcess) -> None:
    """All on loopback, but for HAProxy's figures and replicas' ports for each other, which want the token: SECURITY.md says so; and
    nothing on a port that each Ray's proxy takes beside the others, who then get requests of this server when its front ends."""
    listening: dict[str, set[str]] = {}
    ports: set[int] = set()
    for process in [psutil.Process(live.process.pid), *live.descendants()]:
        try:
            found = [each.laddr for each in process.net_connections(kind="inet") if each.status == psutil.CONN_LISTEN]
            name = "ours" if process.pid == live.process.pid else process.name()
        except psutil.Error:
            continue
        for host, number in found:
            listening.setdefault(name, set()).add(host)
            ports.add(number)
    assert not ports & {8500, 9500}
    assert "127.0.0.1" in listening["ours"]
    for url in (live.url, live.management_url, live.metrics_url):
        host, port = url.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), HANG).close()
    assert listening["haproxy"] == {"127.0.0.1", "0.0.0.0"}  # requests; its statistics and metrics
    assert {"gcs_server", "raylet"} <= set(listening)
    local = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    public = [name for name, hosts in listening.items() if hosts - local]
    assert [name for name in public if not name.startswith(("haproxy", "ray::ServeRepl"))] == []


def test_a_stop_answers_what_is_in_flight_and_leaves_nothing(live: RayProcess, gate: Gate) -> None:
    """SIGTERM with requests in flight and in the queue: all are answered, newcomers are refused, the status is 0."""
    known = live.descendants()
    with ThreadPoolExecutor(3) as pool:
        before = counted(live, ASKED, "four")
        with gate:
            asked = [pool.submit(ask, live, "four") for _ in range(3)]
            wait_until(lambda: counted(live, ASKED, "four") == before + 3)
            gate.wait_held()
            live.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in live.notes)
        assert [each.result().status_code for each in asked] == [200] * 3
    assert live.process.wait(HANG) == 0
    _, left = psutil.wait_procs(known, timeout=HANG)
    assert not [each.name() for each in left]
    with pytest.raises(requests.ConnectionError):
        ask(live, "four")
