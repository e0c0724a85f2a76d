"""Which layer and method show where the object is, for a small network of each family, trained here with fixed seeds.

    python benchmarks/layers/run.py                       # all families: some minutes on two cores
    python benchmarks/layers/run.py --only CNN mixer      # a part; --quick trains for an eighth of the time and keeps nothing

Prints what each layer that can be explained shows, and writes the tables of benchmarks/README.md and the figures in
benchmarks/results/layers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch

from benchmarks.layers import measure, nets, scenes, training
from benchmarks.speed.conditions import conditions

README = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "layers.json"
BEGIN, END = "<!-- layers: begin; benchmarks/layers/run.py writes this -->", "<!-- layers: end -->"

EPOCHS = 8
PICTURES = 256
Found = dict[str, Any]


def measure_family(name: str, epochs: int = EPOCHS, pictures: int = PICTURES) -> Found:
    """Train a family's network; return what is found of it, for JSON."""
    trained = training.train(nets.FAMILIES[name], epochs)
    default, layers = measure.measure(trained.model, scenes.draw(pictures, seed=3))
    return {"accuracy": trained.accuracy, "default": default, "layers": [asdict(layer) for layer in layers]}


def best_of(layers: list[Found], method: str) -> Found:
    """Return the layer whose maps by this method have the largest share in the box."""
    return max(layers, key=lambda layer: layer["shown"][method]["share"])


def default_of(found: Found) -> Found:
    """Return the default layer."""
    (layer,) = [layer for layer in found["layers"] if layer["name"] == found["default"]]
    return layer


def table(families: Mapping[str, Found]) -> str:
    """One row a family: its default layer and the best one, by each of two methods."""
    rows = [
        "| network | accuracy | default layer | bypass | Grad-CAM++ there | best | HiResCAM there | best |",
        "| --- " * 8 + "|",
    ]
    for name, found in families.items():
        layer = default_of(found)
        cells = [name, f"{found['accuracy']:.3f}", f"`{layer['name']}`", _number(layer["bypass"])]
        for method in ("gradcam++", "hirescam"):
            best = best_of(found["layers"], method)
            cells += [_shown(layer["shown"][method]), f"{best['shown'][method]['share']:.3f} (`{best['name']}`)"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def details(name: str, found: Found) -> str:
    """All layers of one family, from the last on, by all methods."""
    rows = [f"| {name} | bypass | {' | '.join(measure.NAMES)} |", "| --- " * (2 + len(measure.NAMES)) + "|"]
    for layer in found["layers"]:
        mark = "**" if layer["name"] == found["default"] else ""
        cells = [
            f"{mark}`{layer['name']}`{mark}",
            _number(layer["bypass"]),
            *(_shown(layer["shown"][each]) for each in measure.NAMES),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def _shown(shown: Found) -> str:
    return f"{shown['share']:.3f} / {shown['peaks']:.2f} / {shown['empty']}"


def write(kept: Found) -> None:
    """Put the tables where the markers are in the README."""
    families = kept["families"]
    about = "; ".join(f"{name}: {value}" for name, value in kept["conditions"].items())
    hidden = "\n\n".join(details(*item) for item in families.items())
    lines = [BEGIN, table(families), "<details><summary>All layers and methods</summary>", hidden, f"{about}", "</details>", END]
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN, 1)
    README.write_text(before + "\n\n".join(lines) + rest.split(END, 1)[1], "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=nets.FAMILIES, metavar="FAMILY", help="these families (all)")
    parser.add_argument("--quick", action="store_true", help="train one epoch, keep nothing")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    kept: Found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"families": {}}
    for name in () if options.tables else options.only or nets.FAMILIES:
        found = measure_family(name, 1 if options.quick else EPOCHS)
        print(details(name, found), flush=True)
        known = {**kept["families"], name: found}
        kept = {
            "conditions": conditions(pictures=f"{PICTURES} of {scenes.SIDE} x {scenes.SIDE}", epochs=EPOCHS),
            "families": {each: known[each] for each in nets.FAMILIES if each in known},
        }
        if not options.quick:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    if not options.quick:
        write(kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
