"""A job on Ray: its driver is killed, everything that it started ends, and another run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.support import build as small
from tests.support.processes.ray_serving import EAGER
from tests.tools.reports.dataset.conftest import LABELS, ROOT, rows_of

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
PATIENCE = 900
"""Seconds until something is taken for broken; Ray alone may take minutes to start where others keep the cores busy."""


@contextlib.contextmanager
def started(mar: Path, pictures: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """The tool, as a user starts it from a clone; it is ended on leaving."""
    command = [str(PYTHON), "-W", "ignore", str(ROOT / "scripts" / "explain_dataset.py"), "--archive", str(mar), "--trust"]
    command += ["--input", str(pictures), "--output", str(output), "--chunk", "8", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")} | EAGER
    with (output.parent / "printed").open("a") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.terminate()  # it has ended long since, but where the test has failed
        process.wait(PATIENCE)


def wait(done: Callable[[], bool], printed: Path) -> None:
    """Waits until something is so; else tells what was printed."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, printed.read_text()
        time.sleep(0.1)


def runs(process: psutil.Process) -> bool:
    """Whether a process runs; nobody may wait for one whose parent was killed."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.live
def test_a_job_on_ray_goes_on_after_its_driver_was_killed(pictures: Path, explained: Path, tmp_path: Path) -> None:
    """Rows are those of a job without Ray, each once; nothing that was started is left; what was explained is not explained again."""
    (tmp_path / "store").mkdir()
    waits = tmp_path / "waits"
    waits.touch()  # so that it is killed in the middle
    slow = f"import os, time; time.sleep(0.3 if len(x) == 8 and os.path.exists({str(waits)!r}) else 0)"
    mar = small.mar(tmp_path / "store", "small", settings={"batchSize": 8}, labels=LABELS, fault=slow)
    output = tmp_path / "output"
    chunks = output / "_chunks"
    printed = tmp_path / "printed"
    with started(mar, pictures, output) as job:
        wait(lambda: len(list(chunks.glob("*.parquet"))) >= 2 or job.poll() is not None, printed)
        assert job.poll() is None, printed.read_text()
        children = psutil.Process(job.pid).children(recursive=True)
        listening = {
            each.laddr.ip for process in children for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN
        }
        heaps = [
            process.environ().get("MALLOC_ARENA_MAX") for process in children if "hosts/child" in " ".join(process.cmdline())
        ]
        job.send_signal(signal.SIGKILL)
        job.wait()
        wait(lambda: not any(map(runs, children)), printed)
    done = len(list(chunks.glob("*.parquet")))
    assert 2 <= done < 17
    assert len(children) > 2
    assert heaps == ["1"]  # as in the worker of Ray that started it
    assert not list(output.glob("part-*"))
    waits.unlink()

    with started(mar, pictures, output) as job:
        job.wait(PATIENCE)

    assert job.returncode == 0, printed.read_text()
    assert f"{8 * done} done before" in printed.read_text()
    assert [(row["path"], row["status"], row["target"]) for row in rows_of(output)] == [
        (row["path"], row["status"], row["target"]) for row in rows_of(explained)
    ]
    assert sorted(path.name for path in output.iterdir()) == [
        *(".camserve.lock", "_inputs.parquet", "_manifest.json", "part-00000.parquet")
    ]
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
