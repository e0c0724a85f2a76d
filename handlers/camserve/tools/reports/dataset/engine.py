"""Where chunks are explained: in processes of this machine, or by Ray Data on as many machines as a cluster has.

Ray Data hands out numbers of chunks, keeps a pool of workers, starts lost ones anew and hands their chunks to others. Rows do not
pass through it: a worker writes its chunk itself, in one step, so a chunk that is handed out twice is still there once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import camserve
from camserve.core.text import in_one_line
from camserve.hosts.ray.unpacked import unpack_once
from camserve.hosts.worker import LoadError, Worker
from camserve.tools.console import ToolError
from camserve.tools.reports.dataset.explaining import Explaining, Job, Tally
from camserve.tools.reports.dataset.results import ARCHIVE, Results
from camserve.tools.reports.dataset.storage import open_place

STORE = 128 * 2**20
"""Bytes of Ray's store for shared values: only numbers of chunks go through it."""
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Has a Ray that is started here listen on loopback alone, as it does on Windows; on Linux it takes 127.0.0.1 for a slip."""
NO_SPARE = ("RAY_prestart_worker_first_driver", "0")
"""Has a Ray that is started here start no process for each core in advance: workers, whose environment is their own, use none."""
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Of a worker of Ray: with glibc's heap for each of its many threads, its memory grew with the data set."""
BLOCKS = 10_000
"""Most tasks that Ray is given; each takes several chunks where there are more."""


@dataclass(frozen=True)
class Workers:
    """How many workers, and where.

    Attributes:
        count: None: as many as there are cores, or GPUs, for.
        cores: of each.
        gpu: each has one.
        address: of the cluster; None: Ray is started on this machine for the job.
        ray: False: without Ray, in processes of this machine.
    """

    count: int | None
    cores: int
    gpu: bool
    address: str | None
    ray: bool


def explain_here(
    job: Job, directory: Path, numbers: Sequence[int], workers: Workers, first: Worker | None = None
) -> Iterator[Tally]:
    """Explain chunks in processes of this machine, and yield what came of each.

    Args:
        directory: of the unpacked archive.
        first: one of the processes, where it runs already.

    Raises:
        LoadError, ToolError, OSError: the job cannot go on.
    """
    count = min(workers.count or max(1, (os.cpu_count() or 1) // workers.cores), len(numbers))
    free: queue.SimpleQueue[Explaining] = queue.SimpleQueue()
    with ThreadPoolExecutor(count, thread_name_prefix="camserve job") as threads:
        started = [threads.submit(Explaining, job, directory, None if number else first) for number in range(count)]
        try:
            for each in started:
                free.put(each.result())

            def explain(number: int) -> Tally:
                worker = free.get()
                try:
                    return worker.explain(number)
                finally:
                    free.put(worker)

            waiting = [threads.submit(explain, number) for number in numbers]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                for task in waiting:
                    task.cancel()
        finally:
            for each in started:
                if each.exception() is None:
                    each.result().close()


class Actor:
    """A worker in a cluster.

    Args:
        job: what is asked; its output holds the archive.
    """

    def __init__(self, job: Job) -> None:
        self._held = ExitStack()  # for as long as this process runs
        self._explaining = Explaining(job, self._held.enter_context(hold_archive(job)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Explain the chunks of a batch, and return what came of each as JSON."""
        return {"tally": [write_tally(self._explaining.explain(int(number))) for number in batch["id"]]}


@contextmanager
def cluster(workers: Workers) -> Iterator[int]:
    """Start Ray on this machine, or join a cluster, for the block; yield how many workers it has room for.

    Raises:
        ToolError: there is no such cluster, or it has no room for one worker.
    """
    own = workers.address is None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if own:
        os.environ.setdefault(*LOOPBACK)
        os.environ.setdefault(*NO_SPARE)
    import ray  # noqa: PLC0415

    started: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
    started |= {"runtime_env": {"env_vars": {"PYTHONPATH": str(Path(camserve.__file__).parents[1])}}}  # perhaps a clone's
    try:
        ray.init("local" if own else workers.address, logging_level="ERROR", log_to_driver=False, **(started if own else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "Ray does not start on this machine" if own else f"--address {workers.address}: there is no cluster of Ray"
        raise ToolError(f"{where}: {in_one_line(error)}") from error
    try:
        has = ray.cluster_resources()
        fit = int(has.get("GPU", 0)) if workers.gpu else int(has.get("CPU", 0)) // workers.cores
        if fit < 1:
            what = "no GPU" if workers.gpu else f"{has.get('CPU', 0):g} cores, and a worker is to have {workers.cores}"
            raise ToolError(f"the cluster has {what}")
        yield workers.count or fit
    finally:
        ray.shutdown()


def explain_with_ray(job: Job, numbers: Sequence[int], workers: Workers, count: int) -> Iterator[Tally]:
    """Explain chunks by `count` workers on the cluster that was joined, and yield what came of each.

    Raises:
        ToolError: the job cannot go on; the message says why.
    """
    import ray  # noqa: PLC0415
    from ray.data import ActorPoolStrategy, DataContext  # noqa: PLC0415

    settings = DataContext.get_current()
    settings.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = min(count, len(numbers))
    chosen = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=min(len(numbers), BLOCKS))
    data = chosen.map_batches(
        Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=count, max_size=count),
        num_cpus=None if workers.gpu else workers.cores,
        num_gpus=1 if workers.gpu else None,
        runtime_env={"env_vars": ONE_HEAP},
    )
    try:
        for row in data.iter_rows():
            yield read_tally(row["tally"])
    except ray.exceptions.RayError as error:
        raise ToolError(f"the job stopped, and can be run again: {name_cause(error)}") from error


def name_cause(error: BaseException) -> str:
    """Say in one line what ended a job: of an exception in a worker, that one."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return name_cause(cause)
    if isinstance(error, (ToolError, LoadError)):
        return str(error)
    last = (str(error).strip().splitlines() or [""])[-1]  # before it stands the worker's traceback
    missing = "No module named 'camserve" in last
    return f"{last}; every node must have this release of camserve" if missing else f"{type(error).__name__}: {last}"


def join_parts(results: Results, numbers: Sequence[int], done: Callable[[], object]) -> None:
    """Join the chunks of each of these parts, some at a time."""
    with ThreadPoolExecutor(4) as threads:
        for each in as_completed([threads.submit(results.join, number) for number in numbers]):
            each.result()
            done()


@contextmanager
def hold_archive(job: Job) -> Iterator[Path]:
    """Unpack the archive that the output holds, once on this machine for all workers, and yield its folder for the block.

    Raises:
        ArchiveError: it is another archive than the job's.
        OSError: it cannot be read.
    """
    place = open_place(job.output) / ARCHIVE
    with ExitStack() as stack:
        path = place.local
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camserve-"))) / ARCHIVE
            path.write_bytes(place.read())
        yield stack.enter_context(unpack_once(path, job.archive)).directory


def write_tally(tally: Tally) -> str:
    """Write a tally as JSON."""
    return json.dumps({**asdict(tally), "faults": [[*kind, *fault] for kind, fault in tally.faults.items()]})


def read_tally(text: str) -> Tally:
    """Read a tally that `write_tally` wrote."""
    read = json.loads(text)
    faults = {(status, kind): (times, name, message) for status, kind, times, name, message in read.pop("faults")}
    return Tally(**read, faults=faults)
