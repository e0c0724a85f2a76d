"""Real servers for tests: archives of a few lines, and `scripts/serve.py` as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging import package_model
from model_archiver.model_packaging_utils import ModelExportUtils
from tests.support.processes.waiting import HANG, Gate, wait_until

from camserve.tools.serving.health import sockets
from camserve.tools.serving.process.process import is_running

ROOT = Path(__file__).resolve().parents[3]


CONFIG = ROOT / "config.properties"


@dataclass(frozen=True)
class Layered:
    """A served archive that may be explained at two layers: these, the later first, the cells of a side of the earlier one's map,
    the pixels of a side of the model's input, how many labels it has, and two classes as they are asked for, and as they are told."""

    name: str = "resnet18"
    layers: tuple[str, str] = ("layer4", "layer3")
    cells: int = 14
    side: int = 224
    labels: int = 1000
    asked: tuple[int | str, ...] = (281, "espresso")
    targets: tuple[int, ...] = (281, 967)


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
        gate = context.model_yaml_config.get("gate", "")
        while os.path.exists(gate):
            open(gate + ".held", "w").close()
            time.sleep(0.01)
        time.sleep(self.seconds)
        seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TMPDIR", "STRANGER")}
        seen |= {"path": os.environ.get("PYTHONPATH", ""), "version": context.manifest["model"]["modelVersion"]}
        def tell(place, row):
            handed = {name: type(value).__name__ for name, value in row.items()}
            return json.dumps({**seen, "handed": handed, "tenant": context.get_request_header(place, "X-Tenant")})
        return [tell(place, row) for place, row in enumerate(data)]
"""

FORM = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n1\r\n'
FORM += b'--b\r\nContent-Disposition: form-data; name="a "; filename="a"\r\nContent-Type: application/json; charset=utf-8\r\n\r\n{}\r\n'
HANDED = (
    (b'{"a":1}', "application/json; charset=utf-8", {"body": "dict"}),
    (b'{"a":1}', "Application/JSON", {"body": "bytearray"}),
    ('{"a":1}'.encode("utf-16"), "application/json", {"body": "bytearray"}),
    (b"1", "text/plain; charset=utf-8", {"body": "str"}),
    (FORM + b"--b--", "multipart/form-data; boundary=b", {"data": "bytearray", "a": "dict"}),
    (b"data=1&a=1&a+=2", "application/x-www-form-urlencoded", {"data": "bytearray", "a": "bytearray"}),
)
"""Bodies of predictions, their content types, and what a handler of one's own gets of them, on every host."""


def write_archive(
    store: Path, name: str, *, version: str = "1.0", seconds: float = 0, batch: int = 1, delay: int = 100, **more: object
) -> None:
    """Packs the handler above, asleep for `seconds` in each batch and for as long as there is a file `gate`, with the archiver that
    users have."""
    source = store.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "sleeper.py").write_text(HANDLER)
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch, "maxBatchDelay": delay, "seconds": seconds} | more
    (source / "model-config.yaml").write_text(json.dumps(settings))
    config = ModelArchiverConfig(
        model_name=name,
        version=version,
        handler=str(source / "sleeper.py"),
        config_file=str(source / "model-config.yaml"),
        export_path=str(store),
    )
    package_model(config, ModelExportUtils.generate_manifest_json(config))


def write_held(store: Path, gate: Gate) -> None:
    """Packs two models that a gate holds, with all the time that they need: `eight` takes so many at once, and long enough that clients
    who ask without a pause leave others a core; `one` has a short queue."""
    write_archive(store, "eight", seconds=0.05, batch=8, gate=str(gate.path), responseTimeout=round(HANG))
    write_archive(store, "one", jobQueueSize=2, gate=str(gate.path), responseTimeout=round(HANG))


def estrange(patch: pytest.MonkeyPatch) -> None:
    """Sets what servers that start now pass on to their workers, and what they do not."""
    patch.setenv("PYTHONPATH", "/stranger")
    patch.setenv("STRANGER", "passed on")
    patch.delenv("OMP_NUM_THREADS", raising=False)


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

        def there() -> bool:
            ended = self.process.poll() is not None
            found = text in path.read_text()
            assert found or not ended, self.errors.read_text()
            return found

        wait_until(there, f"{text!r} in {path.name}")
        self.tree = psutil.Process(self.process.pid).children(recursive=True)
        return path.read_text()

    def url(self) -> str:
        """The URL of the ready line, once it is there."""
        line = self.wait_for(self.output, "\n")
        assert line.startswith("ready http://127.0.0.1:")
        return line.split()[1]

    def left(self) -> list[psutil.Process]:
        """What still runs, a while later, of all that ran when `wait_for` returned."""
        end = time.monotonic() + HANG
        while any(is_running(process) for process in self.tree) and time.monotonic() < end:
            time.sleep(0.05)
        return [process for process in self.tree if is_running(process)]


def assert_handed(url: str, model: str) -> None:
    """That the handler above gets each of `HANDED` so, and finds a header by the name that the client gave it."""
    for body, kind, wanted in HANDED:
        headers = {"Content-Type": kind, "X-Tenant": "a"}
        answer = requests.post(f"{url}/predictions/{model}", data=body, headers=headers, timeout=HANG).json()
        assert (answer["handed"], answer["tenant"]) == (wanted, "a"), (kind, answer)


def log(command: Command, url: str) -> Path:
    """The log of the server at `url`."""
    return command.output.with_name("logs") / f"serve-{url.rpartition(':')[2]}.log"


def ask(pool: ThreadPoolExecutor, url: str, model: str, times: int = 1) -> list[Future[int]]:
    """Sends `times` requests together; their statuses, 0 where the connection was cut. Returns once the server has them all."""

    def send() -> int:
        try:
            return requests.post(f"{url}/predictions/{model}", data=b"x", timeout=HANG).status_code
        except requests.ConnectionError:
            return 0

    metrics = url.rpartition(":")
    wanted = f'ts_inference_requests_total{{model_name="{model}"'

    def arrived() -> float:
        text = requests.get(f"{metrics[0]}:{int(metrics[2]) + 2}/metrics", timeout=HANG).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted))

    before = arrived()
    sent = [pool.submit(send) for _ in range(times)]
    wait_until(lambda: arrived() >= before + times, "the requests arrived")
    return sent


@contextlib.contextmanager
def repeating(calls: Sequence[Callable[[], object]]) -> Iterator[list[object]]:
    """Makes each of these calls again and again, without a pause and beside the others, and collects what they return."""
    got: list[object] = []
    stop = threading.Event()

    def repeat(call: Callable[[], object]) -> None:
        while not stop.is_set():
            got.append(call())

    with ThreadPoolExecutor(len(calls)) as pool:
        repeated = [pool.submit(repeat, call) for call in calls]
        try:
            yield got
        finally:
            stop.set()
        for each in repeated:
            each.result()


def connections_can_be_refused() -> bool:
    """Whether the system lets us copy another's socket, which engines of containers forbid."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return sockets.refuse_connections(os.getpid(), door.getsockname()[1])


def read_batch_sizes(metrics_url: str, model: str) -> dict[int, float]:
    """How many batches of each size one of our own hosts has handed to a model."""
    text = requests.get(f"{metrics_url}/metrics", timeout=HANG).text
    return {
        int(line.split('size="')[1].split('"')[0]): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("camserve_host_batches_total{") and f'"{model}"' in line
    }
