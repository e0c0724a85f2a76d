"""Speed: the engine against its own forward pass and other libraries, live servers against the stock handler's, scaling, memory.

    apt-get install wrk && pip install -e '.[test,benchmark,openvino]'
    python benchmarks/run.py                                    # all of it: two to three hours on two cores that do nothing else
    python benchmarks/run.py --quick                            # two minutes: whether everything runs; writes nothing that lasts
    python benchmarks/run.py --only live --models resnet50      # one part, or one part of one model

Prints every figure and the conditions under which it was taken. Keeps each part's figures in benchmarks/results/, and makes the
tables and plots of benchmarks/README.md of all that lie there. Ratios are taken in turns, round by round, after a warm-up: their
median and quartiles. Figures are worth keeping only from a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.speed.report import tables
from benchmarks.speed.served import archives

PARTS = ("engine", "forward", "runtimes", "loading", "live", "hosts", "profile", "scaling", "memory")
Found = dict[str, Any]


def parts(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Callable[[], Found]]:
    """What is to be measured, by the names under which it is kept."""
    from benchmarks.speed import engine, forward, live, memory, scaling  # noqa: PLC0415 only now is it known that all is installed
    from benchmarks.speed.served import hosts, loading  # noqa: PLC0415

    if options.processor:
        torch.set_num_threads(1)
    quick, rounds, seconds = options.quick, options.rounds, options.seconds
    found: dict[str, Callable[[], Found]] = {
        "engine": lambda: engine.measure(rounds, say, 2 if quick else engine.BATCH, options.processor)
    }
    found["forward"] = lambda: forward.measure(rounds, say)
    for model in forward.IN_RUNTIMES[: 1 if quick else None]:
        batch = 2 if quick else engine.BATCH
        found[f"runtimes-{model}"] = partial(forward.in_runtimes, model, rounds, say, batch, options.processor)
    for model in options.models:
        found[f"loading-{model}"] = partial(loading.measure, model, min(rounds, 5), say, options.processor)
    for model in options.models:
        found[f"live-{model}"] = partial(live.measure, model, rounds, seconds, say, options.store)
    for model in options.models[:1]:
        name = f"hosts-{model}" if options.runtime is None else f"hosts-{model}-{options.runtime}"
        found[name] = partial(hosts.measure, model, rounds, seconds, say, options.runtime)
    for model in options.models:
        found[f"profile-{model}"] = partial(live.profile, model, 2 * seconds, say)
    found["scaling-engine"] = lambda: scaling.engine(min(rounds, 5), say, quick, options.processor)
    found["scaling-server"] = lambda: scaling.server(min(rounds, 3), seconds, say)
    for model in options.models[:1]:
        counts = (20, 60) if quick else (memory.FIRST, memory.LAST)
        found[f"memory-{model}"] = partial(memory.measure, model, say, *counts)
    return {name: run for name, run in found.items() if name.startswith(tuple(options.only or PARTS))}


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*PARTS, "scaling-engine", "scaling-server"]
    parser.add_argument("--only", nargs="+", choices=names, help="these parts (all)")
    parser.add_argument("--models", nargs="+", default=list(archives.MODELS), choices=archives.MODELS, help="served ones (all)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds after the warm-up (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of a slice of load (%(default)s)")
    help_ = "live: takes archives from this folder, and leaves there what it packages (a temporary one)"
    parser.add_argument("--store", type=Path, help=help_)
    help_ = "hosts: package for this runtime, and leave out Ray, whose environment has none (torch, and all hosts)"
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help=help_)
    help_ = "engine, runtimes, loading, scaling-engine: count the processor's seconds, in one thread, on a busy machine"
    parser.add_argument("--processor", action="store_true", help=help_)
    parser.add_argument("--quick", action="store_true", help="one round, short slices, one served model")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables again")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds, options.models = 1, 3, options.models[:1]
    return options


def main(argv: list[str] | None = None) -> int:
    """Measures what is asked for; the exit status."""
    options, console = parsed(argv), Console()
    _check(options, console)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.quick else tables.RESULTS
        with console.status("") as status:
            for name, run in {} if options.tables else parts(options, status.update).items():
                found = run()
                tables.save(name, found, folder)
                console.print(Markdown(tables.page({name: found}, ())))
        if not options.quick:
            _write(folder)
    return 0


def _check(options: argparse.Namespace, console: Console) -> None:
    """Says which libraries the engine would be compared with and are not there; figures that are kept need them all."""
    from benchmarks.speed import engine  # noqa: PLC0415

    lacking = engine.missing()
    if lacking and not options.quick and "engine" in (options.only or PARTS) and not options.tables:
        raise SystemExit(f"not installed: {', '.join(lacking)}; pip install '.[test,benchmark]'")
    if lacking:
        console.print(f"not installed and left out: {', '.join(lacking)}")


def _write(folder: Path) -> None:
    from benchmarks.speed.report import plots  # noqa: PLC0415

    found = tables.load(folder)
    tables.write(found, tables.README, plots.draw(found, tables.FOLDER / "plots"))


if __name__ == "__main__":
    sys.exit(main())
