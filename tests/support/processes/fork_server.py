"""Programs of `camserve.tools.archive.fresh`, each in a process of its own that is forked off one which has loaded torch already.

So an archive is tried as packaging tries it, without the seconds that torch takes to load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from tests.support.processes.waiting import HANG

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
