"""Hunts for requests that keep a worker busy: processor seconds of a batch that holds one, by recipes that are varied.

    python benchmarks/abuse/hunt/run.py --minutes 60              # a small classifier of 1,000 classes, in a process of its own
    python benchmarks/abuse/hunt/run.py --replay '{"kind": "V1", "values": {...}}' --seed 0

Each recipe is answered by the archive's service, in a batch of its own, as TorchServe's worker would: parsing, decoding,
passes, drawing. The dearest of each kind are kept and varied. A neighbour must be answered as ever. What takes longer than
`--limit` seconds of wall time is ended with its process, and fails the run; so does a status of 500 and above, but 503.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tests.support.build import PLAIN, archive

from benchmarks.abuse.bad_pictures import good_picture
from benchmarks.abuse.case import received
from benchmarks.abuse.hunt.bodies import BODIES, WHOLE
from benchmarks.abuse.hunt.grammar import Recipe
from benchmarks.speed.conditions import processor
from camserve.tools.archive.archive import Row, ask, load_service

KEPT = 12
"""Recipes of each kind that are varied."""

WRONG = ("no answer", "the ", "500", "507")
"""How what is said of a recipe begins that fails the run."""

NEIGHBOUR = Row({"body": bytearray(good_picture())}, {}, explain=True)


@dataclass(frozen=True, order=True)
class Find:
    """What one recipe cost."""

    seconds: float
    kind: str = field(compare=False)
    values: dict[str, Any] = field(compare=False)
    size: int = field(compare=False)
    said: str = field(compare=False)
    seed: int = field(compare=False, default=0)


def answer(kind: str, recipe: Recipe, service: Any) -> Find:
    """Make a request, answer it beside a neighbour, and take the processor's time of both."""
    body = BODIES[kind](recipe)
    begun = time.process_time()
    row = Row({body.name: received(body.raw, body.kind)}, dict(body.headers), explain=body.explain)
    reply, neighbour = ask(service, [row, NEIGHBOUR])
    seconds = time.process_time() - begun
    said = str(reply.status) if reply.status == 200 else f"{reply.status} {json.loads(reply.body)['type']}"
    said = said if neighbour.status == 200 else f"the neighbour got {neighbour.status}"
    return Find(seconds, kind, recipe.values, len(body.raw), said)


def serve(connection: Connection) -> None:
    """Answer recipes (kind, values, seed) until the other side goes away."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        labels = {str(each): f"label {each}" for each in range(1000)}
        settings: dict[str, Any] = {**PLAIN, "exif": True}
        service = load_service(archive(Path(folder) / "small", settings, classes=1000, labels=labels))
        connection.send("ready")
        while True:
            try:
                kind, values, seed = connection.recv()
            except EOFError:
                return
            recipe = Recipe(random.Random(seed), values)
            try:
                connection.send(answer(kind, recipe, service))
            except (ValueError, OverflowError, OSError, MemoryError, KeyError) as error:  # of making it: Pillow's encoders
                connection.send(Find(0.0, kind, recipe.values, 0, f"not made: {error!r}"[:80]))


class Hunter:
    """A process that answers, and is ended where it takes too long."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def ask(self, kind: str, values: dict[str, Any], seed: int) -> Find:
        """Answer one recipe."""
        if self._connection is None:
            self._connection, theirs = multiprocessing.Pipe()
            self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            self._connection.recv()
        self._connection.send((kind, values, seed))
        if self._connection.poll(self.limit):
            try:
                found: Find = self._connection.recv()
            except EOFError:
                self.close()
                return Find(self.limit, kind, values, 0, "the process ended", seed)
            return found
        self.close()
        return Find(self.limit, kind, values, 0, "no answer", seed)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
        self._process = self._connection = None


def hunt(hunter: Hunter, minutes: float, seed: int, report: Any) -> dict[str, list[Find]]:
    """Search for so long; `report(found, count)` is called about once a minute. Returns the dearest recipes of each kind."""
    draw = random.Random(seed)
    found: dict[str, list[Find]] = {kind: [] for kind in BODIES}
    until, told, count = time.monotonic() + 60 * minutes, time.monotonic() + 60, 0
    while time.monotonic() < until:
        kind = draw.choice(sorted(BODIES))
        pool = found[kind]
        fresh = len(pool) < KEPT or draw.random() < 0.35
        values = {} if fresh else Recipe(draw, draw.choice(pool).values).varied(draw.randrange(1 << 30)).values
        pool.append(hunter.ask(kind, values, draw.randrange(1 << 30)))
        pool.sort(reverse=True)
        del pool[KEPT:]
        count += 1
        if (told - time.monotonic() > 0 and told - until > -1) or time.monotonic() > told:
            told = time.monotonic() + 60
            report(found, count)
    report(found, count)
    return found


def show(found: dict[str, list[Find]], count: int, console: Console, rows: int) -> None:
    """The dearest of each kind, in Markdown."""
    table = Table("kind", "processor seconds", "MB", "answer", "recipe", box=box.MARKDOWN)
    for kind, finds in found.items():
        for find in finds[:rows]:
            table.add_row(kind, f"{find.seconds:.2f}", f"{find.size / 1e6:.2f}", find.said, json.dumps(find.values))
    console.print(f"{count} recipes", highlight=False)
    console.print(table, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; 1 where a recipe got no answer, or a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120, help="seconds of wall time for one batch (default: 120)")
    parser.add_argument("--rows", type=int, default=2, help="dearest recipes of each kind that are shown")
    parser.add_argument("--replay", type=json.loads, help="one recipe")
    options = parser.parse_args(argv)
    console = Console(width=400)
    console.print(f"{processor()}, bodies of up to {WHOLE >> 20} MiB", highlight=False)
    hunter = Hunter(options.limit)
    try:
        if options.replay:
            console.print(hunter.ask(options.replay["kind"], options.replay["values"], options.seed))
            return 0
        found = hunt(hunter, options.minutes, options.seed, lambda kept, count: show(kept, count, console, options.rows))
    finally:
        hunter.close()
    wrong = [
        find
        for finds in found.values()
        for find in finds
        if find.said.startswith(("no", "the", "500", "507")) and "made" not in find.said
    ]
    for find in wrong:
        console.print(f"FAILED {find}", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
