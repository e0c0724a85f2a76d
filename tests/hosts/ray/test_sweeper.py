"""What Ray leaves where its server is killed is ended and removed, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.processes.serving import LINUX
from tests.support.processes.waiting import HANG, wait_until

from camserve.tools.serving.process import ray_sweeper


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes, which have ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for each in processes:
        each.kill()
        each.wait()


def is_proxy(process: int) -> bool:
    """Whether bash has become what it was told to; between the two a process has no command line at all."""
    return any(word.endswith("haproxy.cfg") for word in psutil.Process(process).cmdline()[:-1])


@LINUX
@pytest.mark.parametrize("written", [b"", b"x"])
def test_a_proxy_that_is_left_over_ends_with_its_server(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], written: bytes
) -> None:
    """And the folder goes; another Ray's proxy, and who only looks at the folder, stay."""
    ours, other = tmp_path / "camserve-ours", tmp_path / "camserve-other"
    sleep = shutil.which("sleep")
    assert sleep
    for folder, name in ((ours, "haproxy"), (other, "haproxy"), (ours, "pager")):
        folder.mkdir(exist_ok=True)
        program = folder.parent / f"{folder.name}-bin" / name
        program.parent.mkdir(exist_ok=True)
        program.symlink_to(sleep)
        script = f"exec -a '{name} -f {folder}/haproxy.cfg' '{program}' 10000"
        started.append(subprocess.Popen(["bash", "-c", script]))
    wait_until(lambda: all(is_proxy(each.pid) for each in started), "that bash is a proxy")
    sweeper = subprocess.Popen([sys.executable, ray_sweeper.__file__, str(ours)], stdin=subprocess.PIPE)
    started.append(sweeper)
    assert sweeper.stdin is not None
    sweeper.stdin.write(written)
    assert [each.poll() for each in started] == [None] * 4
    sweeper.stdin.close()
    assert sweeper.wait(HANG) == 0
    assert not ours.exists()
    assert other.exists()
    assert started[0].wait(HANG) == -9
    assert [each.poll() for each in started[1:3]] == [None, None]
