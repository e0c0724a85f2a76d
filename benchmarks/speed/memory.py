"""Whether a worker's memory grows: its resident set after 5,000 explanations over that after 500."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.speed.conditions import conditions
from benchmarks.speed.live import CONNECTIONS, PNG, served
from benchmarks.speed.served import archives
from benchmarks.speed.served.load import load

FIRST, LAST = 500, 5000


def measure(model: str, say: Callable[[str], None], first: int = FIRST, last: int = LAST) -> dict[str, Any]:
    """The worker's resident set as explanations go on: three of four slices JSON, the fourth overlays."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        archives.ours(store, model)
        picture = archives.photograph(store)
        with served(store, [model]) as (server,):
            answered = turn = 0
            while answered < last:
                accept = PNG if turn % 4 == 3 else "application/json"
                answered += load(server.url, model, picture, seconds=4, share=1.0, accept=accept).requests
                turn += 1
                rows.append({"explanations": answered, "MiB": _resident(server.pids[1:])})
                say(f"{model}: {answered} of {last} explanations, {rows[-1]['MiB']:.0f} MiB")
    start = next(row for row in rows if row["explanations"] >= first)
    told = conditions(model=model, load=f"{CONNECTIONS} connections", picture="photograph, JPEG, 640 x 480")
    ratio = rows[-1]["MiB"] / start["MiB"]
    words = f"worker memory after {rows[-1]['explanations']:.0f} explanations over after {start['explanations']:.0f}"
    row = {"what": words, "goal": 1.02, "side": "most", "median": ratio, "low": ratio, "high": ratio}
    return {"conditions": told, "rows": [row], "curve": rows}


def _resident(pids: list[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20
