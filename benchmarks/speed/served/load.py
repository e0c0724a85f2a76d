"""The load generator: wrk (Debian's package), one thread, which takes a few percent of a core."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import requests

LONGEST = 60
"""Seconds after which a server that has not answered is not waited for."""
SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Slice:
    """What came of one slice of load: answers a second, latencies in seconds, and the share of a core that wrk took itself."""

    rate: float
    p50: float
    p99: float
    requests: int
    generator: float


def wrk() -> str:
    """The program.

    Raises:
        SystemExit: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("the load generator wrk is missing: apt-get install wrk")
    return found


def wrk_version() -> str:
    """As it tells."""
    told = subprocess.run([wrk(), "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(told.split()[:2])


def load(
    url: str,
    model: str,
    picture: Path,
    *,
    seconds: float,
    connections: int = 16,
    share: float = 0.0,
    accept: str = "application/json",
) -> Slice:
    """Sends the picture for so many seconds, for longer where nothing is answered in these.

    `share` of the requests (0 to 1) ask for explanations, the others for predictions.

    Raises:
        RuntimeError: a request failed, or none was answered.
    """
    command = [
        wrk(),
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "300s",
        "-s",
        str(SCRIPT),
        url,
        "--",
    ]
    command += [str(picture), str(share), f"/predictions/{model}", f"/explanations/{model}", accept]
    begun, used = time.perf_counter(), _child_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    share_of_core = (_child_seconds() - used) / (time.perf_counter() - begun)
    _settle(url, model, picture)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if not told["requests"] and seconds < LONGEST:
        return load(url, model, picture, seconds=5 * seconds, connections=connections, share=share, accept=accept)
    if told["failed"] or not told["requests"]:
        raise RuntimeError(f"{told['failed']} of {told['requests']} requests to {model} failed: {done.stdout[-500:]}")
    return Slice(told["requests"] / told["seconds"], told["p50"], told["p99"], told["requests"], share_of_core)


def _settle(url: str, model: str, picture: Path) -> None:
    """Waits until what wrk left in the queue when it hung up is computed: that would weigh upon whatever is measured next.

    Of several workers, another may then still have its last batch.
    """
    requests.post(f"{url}/predictions/{model}", data=picture.read_bytes(), timeout=5 * LONGEST).raise_for_status()


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
