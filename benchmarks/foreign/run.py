"""Classifiers of other libraries, with random weights: which layer is explained, and whether its maps are right.

    python benchmarks/foreign/run.py [--only TEXT] [--json FILE]     # in an environment with tests/support/environments/foreign

Prints a table, and without --only writes it into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch

from benchmarks.foreign.measure import Found, measure
from benchmarks.foreign.networks import list_networks
from benchmarks.speed.conditions import conditions

README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- foreign: begin; benchmarks/foreign/run.py writes this -->", "<!-- foreign: end -->"
LIBRARIES = ("timm", "transformers", "vit-pytorch", "monai", "torchxrayvision")


def table(found: Sequence[Found]) -> str:
    """One row a network."""
    rows = ["| network | layer | map | bypass | alignment, cells | error |", "| --- | --- | --- | --- | --- | --- |"]
    for each in found:
        if each.refused:
            rows.append(f"| {each.name} | refused: {each.refused} |  |  |  |  |")
            continue
        share = "?" if each.bypass is None else f"{each.bypass:.2f}"
        share += "" if each.least is None else f" (least {each.least:.2f})"
        cells = [each.name, f"`{each.layer}`", "x".join(map(str, each.grid)), share, f"{each.alignment:.2f}", f"{each.error:.0e}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write(found: Sequence[Found]) -> None:
    """Put the table where the markers are in the README."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    about = "; ".join(f"{name}: {value}" for name, value in conditions(libraries=libraries).items())
    before, rest = README.read_text("utf-8").split(BEGIN, 1)
    README.write_text(before + "\n\n".join([BEGIN, table(found), about, END]) + rest.split(END, 1)[1], "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose names hold this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is found to a file, too")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for network in list_networks():
        if options.only not in network.name:
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
    if not options.only:
        write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
