"""Processes of their own that are forked off one which has loaded torch already: without the seconds that torch takes.

`ForkServer` runs the programs of `camserve.tools.archive.fresh`, as packaging tries an archive; `ForkedWorkers` runs the workers of
hosts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import pytest
from tests.support.processes.waiting import HANG, wait_until

from camserve.hosts import worker
from camserve.tools.archive import fresh_process

PARENT = """
import json, os, runpy, sys
sys.path[:] = filter(None, sys.path)
import captum.attr, cv2, torch, torchvision, yaml
import ts.model_loader, ts.torch_handler.image_classifier
torch.set_num_threads(int(os.environ.get("CAMSERVE_THREADS", "1")))
program = runpy.run_path(sys.argv[1], run_name="forked")
import camserve_fresh.explain, camserve_fresh.modules, camserve_fresh.needs
camserve_fresh.modules.server_modules()
answers = os.dup(1)
os.dup2(2, 1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            program["main"](json.loads(line))
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
    os.write(answers, b"done\\n")
"""


WORKERS = """
import contextlib, os, runpy, signal, socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
sys.path[0] = os.path.dirname(sys.argv[2])
import numpy, torch, torchvision, yaml, PIL.Image
with contextlib.suppress(ImportError):
    import captum.attr
main = runpy.run_path(sys.argv[2], run_name="forked")["main"]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    control, _ = listener.accept()
    words, fds, *_ = socket.recv_fds(control, 1 << 16, 2)
    if os.fork():
        for each in (control.detach(), *fds):
            os.close(each)
        continue
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        os.dup2(fds[1], 1)
        os.dup2(fds[1], 2)
        threading.Thread(target=lambda: (control.recv(1), os._exit(1)), daemon=True).start()
        _, directory, gpu, batch = words.decode().split("\\0")
        os.chdir(directory)
        main([str(fds[0]), directory, gpu, batch])
    finally:
        sys.stderr.flush()
        os._exit(0)
"""
"""Waits for a worker's arguments, its connection and its output, and runs it until it ends or the one in its place is killed."""

STAND_IN = """
import os, socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect(os.environ["CAMSERVE_FORKED_WORKERS"])
socket.send_fds(control, ["\\0".join(sys.argv[1:]).encode()], [int(sys.argv[1]), 1])
os.close(int(sys.argv[1]))
control.recv(1)
"""
"""Is started in a worker's place, and lives as long as the one that is forked."""


class ForkedWorkers:
    """Has hosts of this process, and what they fork, start workers within a moment.

    Args:
        environment: of the process that they are forked off, beside that of any worker.
    """

    def __init__(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._environment = {**worker.make_environment(1), **environment}

    def __enter__(self) -> ForkedWorkers:
        self._folder = tempfile.TemporaryDirectory(prefix="camserve-", dir="/tmp")  # a socket's path is short
        self._address, self._program = (Path(self._folder.name, name) for name in ("socket", "stand_in.py"))
        self._program.write_text(STAND_IN)
        command = [sys.executable, "-W", "ignore", "-c", WORKERS, str(self._address), str(worker.CHILD)]
        self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.PIPE)  # which ends with us
        wait_until(lambda: self._address.exists() or self._process.poll() is not None, "the process that workers are forked off")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def replace_workers(self, patch: pytest.MonkeyPatch) -> None:
        """Has workers forked that start from now on."""
        patch.setattr(worker, "CHILD", self._program)
        patch.setenv("CAMSERVE_FORKED_WORKERS", str(self._address))


class ForkServer:
    """Takes the place of `fresh_process.run_fresh`; `result` is what the last program returned."""

    def __init__(self) -> None:
        self.result: Any = None

    def replace_fresh(self, patch: pytest.MonkeyPatch) -> None:
        """Has packaging's checks take a fork's time each, instead of torch's."""
        patch.setattr(fresh_process, "run_fresh", self.run)

    def __enter__(self) -> ForkServer:
        self._folder = tempfile.TemporaryDirectory(prefix="camserve-")
        self._words = Path(self._folder.name, "words").open("w+")
        command = [sys.executable, "-W", "ignore", "-c", PARENT, str(fresh_process.PROGRAMS)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, cwd=self._folder.name, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(HANG)
        for each in (self._process.stdout, self._words):
            if each:
                each.close()
        self._folder.cleanup()

    def run(self, program: str, *arguments: str) -> Any:
        """As `fresh_process.run_fresh`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        result = Path(self._folder.name, "result.json")
        result.unlink(missing_ok=True)
        print(json.dumps([program, str(result), *arguments]), file=self._process.stdin, flush=True)
        done = self._process.stdout.readline()
        if not done or not result.exists():
            raise AssertionError(f"the forked process gave no result:\n{Path(self._words.name).read_text()[-3000:]}")
        self.result = json.loads(result.read_text())
        return self.result
