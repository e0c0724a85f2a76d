"""What a worker's load takes in each runtime: a fresh process that opens the archive until it can answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.conditions import Spread, alternate, conditions, ratios
from benchmarks.speed.served import archives
from camserve.capture.runtimes.engines import ENGINES, is_installed

LOAD = """
import json, sys, time
from camserve import Model
imported, used = time.perf_counter(), time.process_time()
model = Model.from_archive(sys.argv[1], device="cpu")
told = {"load": time.perf_counter() - imported, "processor": time.process_time() - used}
print(json.dumps(told | {"runtime": model.metadata["runtime"]}))
"""


def measure(model: str, rounds: int, say: Callable[[str], None], processor: bool = False) -> dict[str, Any]:
    """Seconds until an archive's model is open, in torch and in every installed runtime, in turns.

    Raises:
        RuntimeError: a runtime is not what ran.
    """
    runtimes = ["torch", *filter(is_installed, ENGINES)]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        say(f"{model}: packaging")
        archives.ours(store, model, None, "--runtime", runtimes[-1])
        names = {runtime: archives.in_runtime(store, model, runtime) for runtime in runtimes}
        kind = "processor" if processor else "load"
        work = {
            runtime: lambda runtime=runtime: _load(store / f"{names[runtime]}.mar", runtime, processor)[kind]
            for runtime in runtimes
        }
        timed = alternate(work, rounds, lambda text: say(f"{model}: loading, {text}"))
    rows = [
        {"what": f"{runtime}: loading over loading in torch", "goal": 1.3, "side": "most"}
        | Spread.of(ratios(timed[runtime], timed["torch"])).__dict__
        for runtime in runtimes[1:]
    ]
    seconds = {f"{runtime}: seconds": Spread.of(values).__dict__ for runtime, values in timed.items()}
    rows += [{"what": words, "goal": None, "side": "least", **spread} for words, spread in seconds.items()]
    time = "seconds of the processor" if processor else "by the clock, without imports of torch and camserve"
    return {"conditions": conditions(model=f"{model}, loaded", rounds=rounds, time=time), "rows": rows}


def _load(archive: Path, runtime: str, alone: bool) -> dict[str, Any]:
    """One load; `alone`: in one thread, whose seconds others that keep the cores busy do not add to."""
    environment = {**os.environ, "PYTHONPATH": str(archives.ROOT / "handlers")} | ({"OMP_NUM_THREADS": "1"} if alone else {})
    command = [sys.executable, "-c", LOAD, str(archive)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if told["runtime"]["name"] != runtime:
        raise RuntimeError(f"{archive.name} runs in {told['runtime']}, not in {runtime}")
    return told
