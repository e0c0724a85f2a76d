"""A real TorchServe under what goes wrong in production: the quick form of `benchmarks/survival/run.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.survival import archives, soak
from benchmarks.survival import run as survival
from benchmarks.survival.stopping import Stop
from benchmarks.survival.traffic import FAILED, REFUSED, RIGHT, Outcome, Served, Traffic, mixed, tally
from tests.support.build import HANDLERS, archive

from camserve.tools.serving.configuration import advice
from camserve.tools.serving.health.management import Management
from camserve.tools.serving.server import Server

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only: it limits another process's memory, and fills /dev/full")


BROKEN, PAIR = "broken", "pair"
MODELS = {
    **dict.fromkeys((survival.COMMON, "overloaded", "crammed"), survival.COMMON),
    **dict.fromkeys(("killed", "replaced"), PAIR),
    **dict.fromkeys(("poisoned", "hung"), BROKEN),
}
"""Faults after which TorchServe runs as before, and the model that each is tried with."""


@dataclass(frozen=True)
class Part:
    """A server, as if it had one model."""

    server: Served
    model: str

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    @property
    def management_url(self) -> str:
        """The server's."""
        return self.server.management_url

    @property
    def pids(self) -> list[int]:
        """The server's, without the workers of its other models."""
        management = Management(self.management_url)
        try:
            models = management.fetch_models() or []
        finally:
            management.close()
        others = {each["pid"] for model in models if model["modelName"] != self.model for each in model["workers"]}
        return [pid for pid in self.server.pids if pid not in others]


class Together(survival.Trial):
    """One TorchServe for all faults that leave it running, and one model for those that do not disturb each other. A pass takes a
    while in each of them, so that a worker is seldom without one."""

    def _name(self, fault: str) -> str:
        return MODELS.get(fault, fault)

    @contextmanager
    def _served(self, name: str, *_: object, **__: object) -> Iterator[tuple[Served, Traffic]]:
        server = Part(self._server, self._name(name))
        traffic = Traffic(server.url, mixed(server.model), clients=64)
        traffic.learn()
        yield server, traffic

    _small = _served

    @cached_property
    def _server(self) -> Server:
        heap = advice.required_heap(self.size.queue) // 2**20
        lines = ("enable_model_api=true", f"job_queue_size={self.size.queue}", f"vmargs=-Xmx{heap}m")
        made: dict[str, tuple[str, dict[str, Any]]] = {
            survival.COMMON: (archives.SLOW, {}),
            PAIR: (archives.SLOW, {"minWorkers": 2, "maxWorkers": 2}),
            BROKEN: (archives.SLOW + archives.POISONED + archives.HUNG, {"responseTimeout": archives.PATIENCE}),
        }
        for name, (fault, settings) in made.items():
            archives.small(self.store, name, fault, settings)
        return self.enter_context(Server(self.store, [*made], config=self._configured("together", *lines)))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[survival.Trial]:
    """All faults, on archives of the small classifier."""
    store = tmp_path_factory.mktemp("survival") / "store"
    store.mkdir()
    with Together(store, survival.QUICK) as made:
        yield made


ELSEWHERE = ("stopped", "node")
"""Tried in test_serve.py, and with Ray."""
IN_PROCESS = ("evidence_killed", "evidence_full", "evidence_unreachable", "evidence_bounds")
"""Tried without a server too, in tests/monitoring/evidence."""
LONG = ("soak",)
"""Seconds of it say little; that its checks find what grows, and only that, is shown by `control` and below."""
FAULTS = [
    pytest.param(each, marks=[pytest.mark.slow] if each in (*IN_PROCESS, *LONG) else [])
    for each in survival.FAULTS
    if each not in ELSEWHERE
]


@pytest.mark.live
@LINUX
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_that_should_not_be(trial: survival.Trial, fault: str) -> None:
    """Every answer is the one that the request gets alone, but for what this fault excuses; afterwards all is as before."""
    ends_a_worker = fault in ("killed", "poisoned", "hung", "evidence_killed")
    for _ in range(3):
        row = survival.FAULTS[fault](trial)
        assert not row.complaints, (row.figures, row.complaints)
        if not ends_a_worker or tally(row.outcomes)[FAILED]:
            break  # else no worker had anything else to do when it ended, and nothing was tried
    else:
        pytest.fail("no worker had anything else to do when it ended, three times")
    if fault in ("overloaded", "crammed"):
        assert tally(row.outcomes)[REFUSED]


def growing(owner: str, figure: str, grown: float) -> soak.Series:
    """One figure of a process that warms up by 500, is steady, and then is higher by so much."""
    watched = soak.of_process(owner.removeprefix("the "), owner, psutil.Process())
    (series,) = [each for each in watched if each.figure == figure]
    series.values = [500.0] * 8 + [1000.0] * 8 + [1000.0 + grown] * 8
    return series


@pytest.mark.parametrize("owner", ["serve.py", "Java", "the worker"])
@pytest.mark.parametrize(("figure", "flat"), [("memory", 8), ("file descriptors", 8), ("threads", 4)])
def test_a_soak_sees_each_process_grow(owner: str, figure: str, flat: float) -> None:
    """In memory, descriptors and threads, after warming up; a little more than before is flat."""
    assert growing(owner, figure, flat).complaints() == []
    (complaint,) = growing(owner, figure, 70).complaints()
    assert complaint.startswith(f"{figure} of {owner} grew from 1000 to 1070")


def test_a_soak_sees_that_a_process_ended() -> None:
    """Instead of looking at nothing for hours."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        watched = soak.of_process("worker", "the worker", psutil.Process(process.pid))
    assert soak.looked(watched) == ["the worker ended"]


def test_a_stop_with_nothing_in_progress_shows_nothing() -> None:
    """A request that was answered before the signal was not in progress then, nor one that was sent after it."""
    before, over, after = (Outcome(0, begun, begun + 1, 200, RIGHT) for begun in (8.0, 9.5, 10.5))
    ended = Stop(moment=10, status=0, seconds=1)
    assert ended.complaints([before, after]) == ["nothing was in progress"]
    assert ended.complaints([before, over, after]) == []


@LINUX
def test_the_memory_of_large_pictures_is_given_back(tmp_path: Path) -> None:
    """Four pictures of 25 megapixels, decoded in several threads, leave the process as small as one leaves it."""
    program = """
        import sys
        import psutil
        from PIL import Image
        from tests.support import build
        from camserve.tools.archive.archive import Row, ask, load_service

        service = load_service(sys.argv[1])
        picture = build.encoded(Image.new("RGB", (5000, 5000), (90, 120, 40)))
        rows = [Row({"body": picture}, explain=True)] * 4
        size = lambda: psutil.Process().memory_info().rss / 2**20
        assert ask(service, rows[:1])[0].status == 200
        before = size()
        assert [answer.status for answer in ask(service, rows)] == [200] * 4
        print(size() - before)
    """
    directory = archive(tmp_path / "large")
    environment = {**os.environ, "PYTHONPATH": f"{HANDLERS}:{HANDLERS.parent}"}
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    assert float(ran.stdout.split()[-1]) < 100  # they take 380 MiB


@pytest.mark.gpu
def test_a_poisoned_cuda_context_ends_the_process() -> None:
    """After a device-side assert every later call fails: the process ends instead of failing on."""
    program = """
        import sys
        import torch
        from camserve.pipeline.chunks import run_bisecting

        def attempt(items):
            return (torch.ones(4, device="cuda")[torch.tensor(items, device="cuda")]).tolist()

        print(run_bisecting([1, 2], attempt), flush=True)
        run_bisecting([1, 99], attempt)
        print("still alive", flush=True)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(HANDLERS)},
        timeout=120,
    )
    assert ran.stdout == "[1.0, 1.0]\n"
    assert ran.returncode != 0
    assert "the CUDA context is broken" in ran.stderr
