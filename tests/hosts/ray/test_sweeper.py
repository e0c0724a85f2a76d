"""What Ray leaves where its server is killed is ended and removed, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.processes.serving import LINUX

from camserve.tools.serving.process import ray_sweeper


@LINUX
@pytest.mark.parametrize("written", [b"", b"x"])
def test_a_proxy_that_is_left_over_ends_with_its_server(tmp_path: Path, written: bytes) -> None:
    """And the folder goes; another Ray's proxy, and who only looks at the folder, stay."""
    ours, other = tmp_path / "camserve-ours", tmp_path / "camserve-other"
    sleep = shutil.which("sleep")
    assert sleep
    processes = []
    for folder, name in ((ours, "haproxy"), (other, "haproxy"), (ours, "pager")):
        folder.mkdir(exist_ok=True)
        program = folder.parent / f"{folder.name}-bin" / name
        program.parent.mkdir(exist_ok=True)
        program.symlink_to(sleep)
        script = f"exec -a '{name} -f {folder}/haproxy.cfg' '{program}' 60"
        processes.append(psutil.Popen(["bash", "-c", script]))
    with subprocess.Popen([sys.executable, ray_sweeper.__file__, str(ours)], stdin=subprocess.PIPE) as sweeper:
        assert sweeper.stdin is not None
        sweeper.stdin.write(written)
        assert all(each.is_running() for each in processes)
        sweeper.stdin.close()
        assert sweeper.wait(30) == 0
    try:
        assert not ours.exists()
        assert other.exists()
        assert processes[0].wait(5) == -9
        assert [each.poll() for each in processes[1:]] == [None, None]
    finally:
        for each in processes[1:]:
            each.kill()
            each.wait()
