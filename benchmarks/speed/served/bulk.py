"""What a job of `explain_dataset` costs: its rate beside a plain loop's, and its memory as data sets grow.

    .venv-ray/bin/python benchmarks/speed/served/bulk.py rate [--model resnet18] [--pictures 400] [--turns 3]
    .venv-ray/bin/python benchmarks/speed/served/bulk.py memory [--sizes 10000 100000]

`rate`: one worker on one core, in turns with a loop that asks the same archive's handler for the same pictures, batch by batch,
in a process as a server has it, and writes nothing. Both count from their first batch on; rates and processor time. `memory`:
the largest resident sets of the driver, of the actor and of the process that runs the model, with a tiny network and small
pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

from tests.support import build

from benchmarks.speed.conditions import conditions
from benchmarks.speed.served import archives
from camserve.tools.archive.archive import open_archive
from camserve.tools.reports.dataset.explaining import Job, make_request, open_hosted, start_worker

KINDS = {"driver": "explain_dataset", "actor": "ray::MapWorker", "model": "hosts/child"}
"""Processes of a job, by a part of their command line."""


def main() -> None:
    """Measures what the command line asks for, and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "memory"])
    parser.add_argument("--model", choices=archives.MODELS, default="resnet18")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs=2, default=[10_000, 100_000])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = measure_rate(Path(folder), options) if options.what == "rate" else measure_memory(Path(folder), options.sizes)
    print(json.dumps({"conditions": conditions(), **found}, indent=1))


def measure_rate(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of a job's worker over those of a plain loop, in turns."""
    name = archives.ours(folder, options.model, None, "--channels-last", "true")
    archive, pictures = folder / f"{name}.mar", folder / "pictures"
    pictures.mkdir()
    content = archives.photograph(folder).read_bytes()
    for number in range(options.pictures):
        (pictures / f"{number:05}.jpg").write_bytes(content)
    turns: list[dict[str, Any]] = []
    for turn in range(options.turns):
        loop = run_loop(archive, sorted(pictures.iterdir()))
        job = run_job(archive, pictures, folder / f"rows-{turn}", options.pictures)
        turns.append({"loop": loop, "job": job, "ratio": job["rate"] / loop["rate"], "cpu": job["cpu"] / loop["cpu"]})
    return {
        "turns": turns,
        "rate of a job's worker over a plain loop's": statistics.median(turn["ratio"] for turn in turns),
        "processor time a picture over a plain loop's": statistics.median(turn["cpu"] for turn in turns),
    }


def run_loop(archive: Path, paths: list[Path]) -> dict[str, float]:
    """Asks for all pictures, batch by batch; the rate and the processor seconds a picture, from the second batch on."""
    job = Job("", "", "", "", 1, {}, None, 1, gpu=False, most=2**30, statistics=True)
    with open_archive(archive) as opened:
        hosted = open_hosted(opened.directory)
        worker = start_worker(job, hosted)
        model = psutil.Process(worker.pid)
        started, spent = 0.0, 0.0
        for start in range(0, len(paths), hosted.batch_size):
            answers, _ = worker.measure(
                [make_request(job, path.read_bytes()) for path in paths[start : start + hosted.batch_size]], 120
            )
            for _, _, _, body in answers:
                json.loads(body)
            if not start:
                started, spent = time.perf_counter(), _cpu(model) + time.process_time()
        seconds, cpu = time.perf_counter() - started, _cpu(model) + time.process_time() - spent
        worker.end(2)
    counted = len(paths) - hosted.batch_size
    return {"rate": counted / seconds, "cpu": cpu / counted}


def run_job(archive: Path, pictures: Path, rows: Path, count: int) -> dict[str, float]:
    """Runs a job with one worker; the rate and the processor seconds a picture of actor and model, from its first chunk on."""
    chunk = 32
    marks: list[tuple[float, float, int]] = []
    with _started(archive, pictures, rows, chunk) as job:
        while job.poll() is None:
            done = len(list(rows.glob("_chunks/*.parquet"))) * chunk
            if done and (not marks or done > marks[-1][2]) and done <= count:
                spent = [[_cpu(each) for each in _processes(job, kind)] for kind in ("actor", "model")]
                if all(map(all, spent)) and all(spent):  # one that has ended would take what it spent with it
                    marks.append((time.perf_counter(), sum(map(sum, spent)), done))
            time.sleep(0.02)
    (began, first, one), (ended, last, other) = marks[0], marks[-1]
    return {"rate": (other - one) / (ended - began), "cpu": (last - first) / (other - one)}


def measure_memory(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """The largest resident sets, MiB, of a job's processes with data sets of two sizes, and their ratios."""
    archive = build.mar(folder, "tiny", settings={"batchSize": 8})
    peaks: dict[int, dict[str, float]] = {}
    for size in sizes:
        pictures = folder / f"pictures-{size}"
        _draw(pictures, size)
        peaks[size] = dict.fromkeys(KINDS, 0.0)
        with _started(archive, pictures, folder / f"rows-{size}", 256) as job:
            while job.poll() is None:
                for kind in KINDS:
                    for each in _processes(job, kind):
                        peaks[size][kind] = max(peaks[size][kind], _resident(each))
                time.sleep(0.5)
    small, large = (peaks[size] for size in sizes)
    return {"MiB": peaks, "ratio": {kind: large[kind] / small[kind] for kind in KINDS if small[kind]}}


def _draw(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(folder / f"{number:07}.jpg")


@contextmanager
def _started(archive: Path, pictures: Path, rows: Path, chunk: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "explain_dataset.py"), "--archive", str(archive), "--trust"]
    command += ["--input", str(pictures), "--output", str(rows), "--chunk", str(chunk), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "handlers")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as job:
        yield job
    if job.returncode:
        raise SystemExit(f"the job ended with status {job.returncode}")


def _processes(job: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
    found = []
    try:
        everyone = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for each in everyone:
        try:
            if KINDS[kind] in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def _cpu(process: psutil.Process) -> float:
    """Seconds of the processor so far; 0 of one that has ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
