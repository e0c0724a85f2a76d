"""Ray Serve as users start it: `scripts/serve.py --host ray` as a process of .venv-ray, whose packages the tests' Python lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests
from tests.support.processes.external_server import ExternalServer
from tests.support.processes.serving import repeating
from tests.support.processes.waiting import HANG, wait_until

import camserve

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-ray" / "bin" / "python"

EAGER = {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
"""Ray's workers are as nice as others: behind tests that compute they would wait for minutes. And Ray ends none of them where the
tests beside it fill the machine's memory."""


class RayProcess(ExternalServer):
    """A running server; `process` is the command's, `descendants` are Ray's and the workers'."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        super().__init__(url, next(folder.glob("serve-*.log")))
        self.process = process
        self.folder = folder

    @property
    def lines(self) -> list[str]:
        """Its log, which gathers the replicas' lines every second."""
        time.sleep(2.5)
        return super().lines

    @property
    def notes(self) -> str:
        """What the command said on standard error."""
        return (self.folder / "notes").read_text()

    def descendants(self, words: str = "") -> list[psutil.Process]:
        """Its processes whose command line holds `words`."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if words in " ".join(_cmdline(each))]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command for its cluster, as its notes say."""
        words = next(line for line in self.notes.splitlines() if "RAY_AUTH_TOKEN_PATH=" in line).split()
        token = next(word.partition("=")[2] for word in words if word.startswith("RAY_AUTH_TOKEN_PATH="))
        address = words[words.index("--address") + 1]
        command = [str(PYTHON), "scripts/serve_ray.py", "--address", address, *arguments]
        environment = compose_environment(self.folder) | {"RAY_AUTH_TOKEN_PATH": token}
        return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def compose_environment(folder: Path) -> dict[str, str]:
    """This process's environment, without a home that could be written to, and with one thread a worker. Pandas, which came with Ray Data,
    cannot be imported, as where Ray Serve is installed alone: Serve does without, and each of its processes takes half a second less."""
    hiding = folder / "without"
    hiding.mkdir(exist_ok=True)
    (hiding / "pandas.py").write_text("raise ImportError\n")
    paths = os.pathsep.join(filter(None, [str(hiding), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **EAGER}


@contextmanager
def ray_serving(folder: Path, *arguments: str) -> Iterator[RayProcess]:
    """Starts the command, and waits until it is ready; afterwards all its processes have ended."""
    if not PYTHON.exists():
        pytest.skip("needs .venv-ray, which scripts/test.sh makes")
    folder.mkdir(exist_ok=True)
    command = [str(PYTHON), "scripts/serve_ray.py", "--port", "0", "--log-dir", str(folder), *arguments]
    with (folder / "notes").open("w") as notes:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=compose_environment(folder),
            stdout=subprocess.PIPE,
            stderr=notes,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    known: list[psutil.Process] = []
    try:
        line = process.stdout.readline()
        assert line.startswith("ready "), (folder / "notes").read_text()
        known = psutil.Process(process.pid).children(recursive=True)
        yield RayProcess(process, line.split()[1], folder)
    finally:
        if process.poll() is None:
            known += psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        left = end_all(known)
    assert not left, left


def end_all(processes: Sequence[psutil.Process]) -> list[str]:
    """Returns what still runs a long time later, having ended it."""
    _, left = psutil.wait_procs(list(set(processes)), timeout=HANG)
    names = [" ".join(_cmdline(each)) for each in left]
    for each in left:
        each.kill()
    return names


def ask(server: RayProcess, model: str) -> requests.Response:
    """One prediction."""
    return requests.post(f"{server.url}/predictions/{model}", data=b"x", timeout=HANG)


def error(answer: requests.Response) -> tuple[int, str]:
    """Status and type of an error, which has the contract's shape."""
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert (list(told), told["code"]) == (["code", "type", "message"], answer.status_code)
    return answer.status_code, told["type"]


def workers_of(server: RayProcess, model: str) -> list[int]:
    """The process ids of a model's workers, once its replicas tell them: a busy one is left out."""
    pids: list[int] = []

    def told() -> bool:
        (described,) = requests.get(f"{server.management_url}/models/{model}", timeout=HANG).json()
        pids[:] = [int(each["pid"]) for each in described["workers"]]
        return bool(pids)

    wait_until(told)
    return pids


def replicas_of(server: RayProcess, model: str) -> list[psutil.Process]:
    """The processes of a model's replicas."""
    return server.descendants(f"ray::ServeReplica:camserve:{model}")


def wait_for_more(got: list[object], count: int) -> None:
    """Returns once so many more answers have come."""
    before = len(got)
    wait_until(lambda: len(got) > before + count)


@contextmanager
def clients(server: RayProcess, model: str, count: int) -> Iterator[list[object]]:
    """Lets `count` of the shipped client ask without a pause, and collects what they get."""

    def ask_once(client: camserve.Client) -> object:
        try:
            return client.predict(b"x", model=model)["version"]
        except camserve.CamserveError as failed:
            return failed

    with ExitStack() as stack:
        asking = [stack.enter_context(camserve.Client(server.url, timeout=HANG)) for _ in range(count)]
        yield stack.enter_context(repeating([partial(ask_once, client) for client in asking]))


def counted(server: RayProcess, name: str, model: str) -> float:
    """The sum of a model's series whose lines begin so."""
    lines = requests.get(f"{server.metrics_url}/metrics", timeout=HANG).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and f'"{model}"' in line)
