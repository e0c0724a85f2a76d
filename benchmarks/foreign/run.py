"""Classifiers of other libraries, with random weights: which layer is explained, and whether its maps are right.

    scripts/setup.sh test && CAMSERVE_SLOW=1 scripts/test.sh --collect-only -q     # makes .venv-foreign
    .venv-foreign/bin/python benchmarks/foreign/run.py    # 130 networks: about 15 minutes of a core that does nothing else

Prints a table, keeps what was found in benchmarks/results/foreign.json, and writes the table into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch

from benchmarks.foreign.lists import list_networks
from benchmarks.foreign.measure import Found, measure
from benchmarks.speed import conditions as speed
from benchmarks.speed.report import tables

README = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "foreign.json"
BEGIN, END = "<!-- foreign: begin; benchmarks/foreign/run.py writes this -->", "<!-- foreign: end -->"
LIBRARIES = ("timm", "transformers", "vit-pytorch", "monai", "torchxrayvision", "pretrainedmodels", "pytorchcv")


def table(found: Sequence[Found]) -> str:
    """One row a network."""
    rows = ["| network | layer | map | bypass | alignment, cells | error |", "| --- | --- | --- | --- | --- | --- |"]
    for each in found:
        if each.refused:
            rows.append(f"| {each.name} | refused: {shorten(each.refused, 70)} |  |  |  |  |")
            continue
        share = "?" if each.bypass is None else f"{each.bypass:.2f}"
        share += "" if each.least is None else f" (least {each.least:.2f})"
        name, grid = f"`{shorten(each.layer)}`", "x".join(map(str, each.grid))
        cells = [each.name, name, grid, share, _alignment(each), f"{each.error:.0e}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def shorten(text: str, most: int = 24) -> str:
    """Cut a text that would make the table too wide; results/foreign.json has it whole."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _alignment(found: Found) -> str:
    """The distance; where it is a displacement, that down and right, and the rest; whether an earlier layer tells it."""
    moved = f" ({found.shift[0]:+.2f}, {found.shift[1]:+.2f}; {found.rest:.2f})" if max(map(abs, found.shift)) > 0.2 else ""
    return f"{found.alignment:.2f}{moved}{', earlier' if found.told_by else ''}"


def write(found: Sequence[Found], conditions: Mapping[str, str]) -> None:
    """Put the table where the markers are in the README."""
    about = tables.told(conditions)
    before, rest = README.read_text("utf-8").split(BEGIN, 1)
    README.write_text(before + "\n\n".join([BEGIN, table(found), about, END]) + rest.split(END, 1)[1], "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose names begin like this; the others' rows stay")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is found to this file only")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for network in list_networks():
        if options.tables or not network.name.startswith(options.only):
            continue
        start = time.process_time()
        try:
            found.append(measure(network))
        except Exception as error:  # noqa: BLE001 the table says of every network what came of it
            found.append(Found(network.name, refused=f"{type(error).__name__}: {str(error)[:200]}"))
        print(f"{table(found[-1:]).splitlines()[-1]} {time.process_time() - start:.1f} s", file=sys.stderr, flush=True)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1))
    else:
        keep(found)
    return 0


def keep(found: Sequence[Found]) -> None:
    """Keep what was found beside what is kept of other networks, and write the table of all."""
    kept = json.loads(RESULTS.read_text())["found"] if RESULTS.is_file() else []
    known = {each["name"]: each for each in kept if "told_by" in each}  # others were measured in another way
    known |= {each.name: asdict(each) for each in found}
    about = speed.conditions(libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES))
    rows = [known[network.name] for network in list_networks() if network.name in known]
    RESULTS.write_text(json.dumps({"conditions": about, "found": rows}, indent=1) + "\n")
    write([Found(**{**each, "grid": tuple(each["grid"]), "shift": tuple(each["shift"])}) for each in rows], about)


if __name__ == "__main__":
    sys.exit(main())
