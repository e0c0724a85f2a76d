"""A server from its start to its end, in this process."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from tests.support.processes.serving import CONFIG, ask, assert_handed, estrange, write_archive
from tests.support.processes.waiting import HANG
from tests.tools.serving.doubles import Running, ScriptedManagement, server_hearing, versions

from camserve.tools.commands.serve import Server
from camserve.tools.serving import server as server_module
from camserve.tools.serving.configuration import cores
from camserve.tools.serving.process.errors import ServeError
from camserve.tools.serving.process.process import is_running


@contextlib.contextmanager
def asked(server: Server, seconds: float) -> Iterator[None]:
    """Inside, the server is asked to stop after so many seconds."""
    timer = threading.Timer(seconds, server.request_stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """A store of two versions of a model that waits two seconds for other requests; the newer file sorts before the older one."""
    store = tmp_path / "store"
    store.mkdir()
    write_archive(store, "cats", version="2.0", batch=4, delay=2000)
    (store / "cats.mar").rename(store / "cats-2.mar")
    write_archive(store, "cats", version="1.0", batch=4, delay=2000)
    return store


def assert_older_is_default(server: Server) -> None:
    """That a newer file in the store waits to be named: TorchServe's default is the first that it is given, version 1.0."""
    (default,) = requests.get(f"{server.management_url}/models/cats", timeout=HANG).json()
    every = requests.get(f"{server.management_url}/models/cats/all", timeout=HANG).json()
    assert (default["modelVersion"], {each["modelVersion"] for each in every}) == ("1.0", {"1.0", "2.0"})
    answers = [requests.post(f"{server.url}/predictions/cats{version}", data=b"x", timeout=HANG) for version in ("", "/2.0")]
    assert [answer.json()["version"] for answer in answers] == ["1.0", "2.0"]


@pytest.mark.live
def test_servers_run_side_by_side(cats: Path, quick: Server, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    """Two servers on one machine answer at the same time, each with workers, ports and folder of its own; one that ends leaves
    nothing, and the other goes on. A request that Java holds back for its batch to fill, in no queue and in no worker, is answered
    before the end."""
    one = quick
    estrange(monkeypatch)
    with Server(cats, config=CONFIG) as two:
        assert_older_is_default(two)
        answers = [
            requests.post(f"{one.url}/predictions/quick", timeout=HANG),
            requests.post(f"{two.url}/predictions/cats", timeout=HANG),
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        seen = [answer.json() for answer in answers]
        assert requests.get(f"{two.url}/predictions/quick", timeout=HANG).status_code == 404
        assert "ts_inference_requests_total" in requests.get(f"{one.metrics_url}/metrics", timeout=HANG).text
        assert requests.get(f"{two.management_url}/models", timeout=HANG).json()["models"][0]["modelName"] == "cats"
        ours, others = ([psutil.Process(pid) for pid in server.pids] for server in (one, two))
        assert len({*ours, *others}) == 6
        if sys.platform == "linux":  # others do not tell where a thread sleeps
            (held,) = ask(pool, two.url, "cats")
            assert two.stop(drain=HANG)
            assert held.result() == 200
    assert not any(is_running(process) for process in others)
    assert all(is_running(process) for process in ours)
    assert seen[0]["TMPDIR"] != seen[1]["TMPDIR"]
    assert [Path(each["TMPDIR"]).exists() for each in seen] == [True, False]
    assert all("/stranger" not in each["path"] and each["STRANGER"] == "passed on" for each in seen)
    assert [each["OMP_NUM_THREADS"] for each in seen] == [str(max(1, cores.count_cores() // workers)) for workers in (2, 2)]


@pytest.mark.live
def test_children_of_a_worker_are_no_workers(quick: Server) -> None:
    """A process that a model forks while it loads has its worker's command line; its end, before the worker was ready, says nothing
    about the model."""
    assert requests.post(f"{quick.url}/predictions/forks", timeout=HANG).status_code == 200


@pytest.mark.live
def test_what_a_handler_of_ones_own_gets(quick: Server) -> None:
    """The same as on other hosts, whose tests ask it too."""
    assert_handed(quick.url, "quick")


@pytest.mark.live
def test_a_management_address_that_stays_silent(store: Path) -> None:
    """It is not waited for without end, and the error says what was last heard of it; nothing goes on running."""
    started = time.time()
    with pytest.raises(ServeError, match=r"^http://127\.0\.0\.1:\d+ gave no usable answer for 0\.3 s: ConnectionError: "):
        Server(store, ["quick"], config=CONFIG, max_silence=0.3).__enter__()  # Java takes longer to start
    assert not [child for child in psutil.Process().children(recursive=True) if child.create_time() > started]


def test_a_model_that_loads_for_long_is_waited_for(store: Path) -> None:
    """As long as the management address answers, that no worker is ready yet is no silence."""
    loads = [versions("UNLOADING")] * 12
    server = server_hearing(store, ScriptedManagement(*loads, versions("READY")), max_silence=0.3)
    began = time.monotonic()
    server.wait_ready()
    assert time.monotonic() - began > 1


class Restarting(Running):
    """A process of which one worker ends each time that somebody looks; the log says of the first that it began late."""

    late = (
        "2026-01-01T00:00:00,000 [ERROR] W-9000-quick_1.0 org.pytorch.serve.wlm.WorkerThread - Backend worker startup time out."
    )
    lines = (late,)

    def __init__(self) -> None:
        self.workers = [[psutil.Process()], [], [psutil.Process()], []]

    def children(self, recursive: bool = True) -> set[psutil.Process]:
        """The next."""
        return set(self.workers.pop(0) if self.workers else ())


def test_a_worker_that_begins_late_is_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe ends it after two minutes and starts another. The next that ends has no such excuse."""
    monkeypatch.setattr(server_module, "is_worker", lambda _: True)
    monkeypatch.setattr(server_module, "REASON_WAIT", 0.1)
    server = server_hearing(store, ScriptedManagement(versions("UNLOADING")))
    server._process = Restarting()  # type: ignore[assignment]
    with pytest.raises(ServeError, match=r'^the model "quick" does not load: its worker ended and gave no reason: '):
        server.wait_ready()
    assert not server._process.workers  # type: ignore[attr-defined]


def test_silence_is_told_as_it_is(store: Path) -> None:
    """The limit is the one that was given, in plain figures, and what came in place of an answer is said, not called silence."""
    with pytest.raises(ServeError, match=r"^http://127\.0\.0\.1:2 gave no usable answer for 0\.2 s: ValueError: nobody knows$"):
        server_hearing(store, ScriptedManagement(None), max_silence=0.2).wait_ready()
    with pytest.raises(ServeError, match="no usable answer for 1 s: "):
        server_hearing(store, ScriptedManagement(None), max_silence=1.0).wait_ready()


def test_an_outage_ends_the_wait(store: Path) -> None:
    """Once it is longer than the limit, and if the worker ends as soon as it is ready; a worker that is ready again, a management
    address that is silent, and a model that has not been ready yet are none."""
    server = server_hearing(store, ScriptedManagement(versions("READY"), versions("UNLOADING")), max_outage=0.5)
    server.wait_ready()
    with (
        asked(server, HANG),
        pytest.raises(ServeError, match=r'^the model "quick" has had no ready worker for \d+ s, .*\n  its only words$'),
    ):
        server.wait_stop()
    for answers in ([versions("READY")], [versions("READY"), None], [versions("UNLOADING")]):
        server = server_hearing(store, ScriptedManagement(*answers), max_outage=0.1)
        with asked(server, 1.5):
            server.wait_stop()
