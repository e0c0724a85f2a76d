"""A live server, and a small request again and again beside one dear request, and beside eight of them at once.

    python benchmarks/abuse/hunt/live.py                 # every case
    python benchmarks/abuse/hunt/live.py --case strips   # those whose name holds this

Prints, for each case, what the dear requests got, the worker's processor seconds, and how long the slowest small one took.
What fails the run: a worker that ended, a small request that got no 200 with the same labels, or a status of 500, 504 or 507.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import psutil
from rich import box
from rich.console import Console
from rich.table import Table
from tests.support.build import PLAIN, mar

from benchmarks.abuse.bad_pictures import good_picture
from benchmarks.abuse.hunt.bodies import Body
from benchmarks.abuse.hunt.cases import CASES
from benchmarks.speed.conditions import processor
from camserve.tools.commands.serve import Server

FAULTS = {500, 504, 507, 0}
PAUSE = 0.25
"""Seconds between two small requests."""


def send(url: str, path: str, body: Body) -> tuple[int, bytes]:
    """Post a body; returns the status, 0 where the connection broke, and the answer."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=300)
    try:
        headers = {"Content-Type": body.kind or "application/octet-stream", **body.headers}
        connection.request("POST", path.replace("*", "explanations" if body.explain else "predictions"), body.raw, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


class Neighbour:
    """Sends a small request again and again, and keeps how long the slowest took, and what was wrong."""

    def __init__(self, url: str, path: str) -> None:
        self.slowest, self.wrong, self.count = 0.0, "", 0
        self._url, self._path = url, path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        small, right = Body(good_picture()), b""
        while not self._end.wait(PAUSE):
            begun = time.monotonic()
            status, answer = send(self._url, self._path, small)
            self.slowest, self.count = max(self.slowest, time.monotonic() - begun), self.count + 1
            right = right or answer
            if status != 200 or set(json.loads(answer)) != set(json.loads(right)):
                self.wrong = f"the small request got {status}: {answer[:200]!r}"


def busy(pids: Sequence[int]) -> float:
    """Return the processor seconds that the workers have taken so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids[1:]]
    return float(sum(each.user + each.system for each in times))


def measure(server: Server, body: Body, count: int) -> tuple[list[str], str]:
    """Send `count` of a body at once.

    Returns:
        The answers, the workers' processor seconds, seconds until the last answer, those of the slowest small one; and what was
        wrong.
    """
    pids = server.pids
    before = busy(pids)
    with Neighbour(server.url, "/*/small") as neighbour, ThreadPoolExecutor(count) as threads:
        time.sleep(2 * PAUSE)
        begun = time.monotonic()
        replies = list(threads.map(lambda _: send(server.url, "/*/small", body), range(count)))
        seconds = time.monotonic() - begun
        time.sleep(2 * PAUSE)
    statuses = Counter(status for status, _ in replies)
    wrong = neighbour.wrong or ("a worker ended" if server.pids != pids else "")
    wrong = wrong or (f"statuses {dict(statuses)}: {replies[0][1][:200]!r}" if FAULTS & set(statuses) else "")
    took = f"{busy(pids) - before:.1f}" if not wrong else ""
    return [
        ", ".join(f"{n} x {status}" for status, n in statuses.items()),
        took,
        f"{seconds:.1f}",
        f"{neighbour.slowest:.1f}",
    ], wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--many", type=int, default=8, help="requests at once (default: 8, a batch)")
    options = parser.parse_args(argv)
    console = Console(width=160)
    console.print(processor(), highlight=False)
    columns = [[f"{count}: answers", "worker, s", "last, s", "small, s"] for count in (1, options.many)]
    table = Table("request", "MB", *columns[0], *columns[1], box=box.MARKDOWN)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        mar(Path(folder), "small", explain={**PLAIN, "exif": True}, classes=7, settings={"batchSize": 8, "maxBatchDelay": 20})
        with Server(Path(folder), ["small"], config=ROOT / "config.properties", port=0, sinks=lambda _: ("", [])) as server:
            for name, make in CASES.items():
                if options.case not in name:
                    continue
                body = make()
                row = [name, f"{len(body.raw) / 1e6:.1f}"]
                for count in (1, options.many):
                    cells, wrong = measure(server, body, count)
                    row += cells
                    failed += [f"{name}: {wrong}"] if wrong else []
                console.print(*row, sep=" | ", highlight=False)
                table.add_row(*row)
    console.print(table)
    for fault in failed:
        console.print(f"FAILED {fault}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
