"""Which layer and method show where the object is, for small networks of each family, trained here with fixed seeds.

    python benchmarks/layers/run.py                       # all families, three seeds: an hour on a quiet core
    python benchmarks/layers/run.py --only CNN mixer      # a part; --quick trains one seed for a third of the time, keeps nothing
    python benchmarks/layers/run.py --weights toys        # keeps what is trained in this folder, and trains nothing that is there

Prints what each family's layers show, and writes the tables of benchmarks/README.md and the figures in
benchmarks/results/layers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch

from benchmarks.layers import measure, nets, scenes, training
from benchmarks.speed.conditions import conditions
from benchmarks.speed.report import tables

README = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "layers.json"
BEGIN, END = "<!-- layers: begin; benchmarks/layers/run.py writes this -->", "<!-- layers: end -->"

EPOCHS = 3
LONGER = {"Swin": 6, "mixer": 9}
"""Epochs of families that have learnt too little after three."""
SEEDS = 3
PICTURES = 256
METHODS = ("gradcam++", "hirescam", "layercam")
ROLES = ("last", "default")
LEAST = 0.5
"""Least bypass of a layer that the summary leaves out when it looks for the best: its maps cannot show half of the scores."""

Found = dict[str, Any]


def measure_seed(name: str, seed: int, epochs: int, weights: Path | None, pictures: int = PICTURES) -> Found:
    """Train a family's network, or load it; return what is found of it, for JSON."""
    trained = training.load_or_train(nets.FAMILIES[name], epochs, seed, weights and weights / f"{name}, seed {seed}.pt")
    found = measure.measure(trained.model, scenes.draw(pictures, seed=3), scenes.draw_two(pictures, seed=5))
    return {"accuracy": trained.accuracy, **asdict(found)}


def figure(found: Found, layer: str, method: str, what: str) -> float:
    """Return one figure of a layer, of one seed; not a number where the layer cannot be explained."""
    return next((each["shown"][method][what] for each in found["layers"] if each["name"] == layer), float("nan"))


def middle(seeds: Sequence[Found], layer: str, method: str, what: str) -> float:
    """Return the median over the seeds; `default` and `last` are what these are with each seed."""
    return statistics.median(figure(each, each.get(layer, layer), method, what) for each in seeds)


def best_of(seeds: Sequence[Found], method: str, what: str) -> tuple[str, float]:
    """Return the layer with the largest median, and that, of the layers that every seed can explain and that hold the scores."""
    layers = [each["name"] for each in seeds[0]["layers"]]
    shared = [name for name in layers if all(name in [each["name"] for each in seed["layers"]] for seed in seeds)]
    holding = [name for name in shared if statistics.median(bypass_of(seed, name) for seed in seeds) < LEAST]
    name = max(holding or shared, key=lambda each: middle(seeds, each, method, what))
    return name, middle(seeds, name, method, what)


def bypass_of(found: Found, layer: str) -> float:
    """Return the bypass of a layer; 0 where it was not measured."""
    return next((each["bypass"] or 0.0 for each in found["layers"] if each["name"] == layer), 0.0)


def table(families: Mapping[str, Sequence[Found]]) -> str:
    """Of each family, by each method: the layer of the rule before, today's, and the best one."""
    rows = ["| network, accuracy | method | last layer | default layer | best share | best apart |", "| --- " * 6 + "|"]
    for name, seeds in families.items():
        accuracy = statistics.median(each["accuracy"] for each in seeds)
        layers = [" or ".join(f"`{each}`" for each in dict.fromkeys(seed[role] for seed in seeds)) for role in ROLES]
        title = f"{name}, {accuracy:.2f}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        rows.append(f"| {title} |  | {' | '.join(layers)} |  |  |")
        for method in METHODS:
            told = ["", f"`{method}`"]
            for role in ROLES:
                shown = [middle(seeds, role, method, what) for what in ("share", "apart", "empty")]
                told.append(f"{shown[0]:.3f}, {shown[1]:+.3f}, {shown[2]:.0f}")
            for what in ("share", "apart"):
                best, value = best_of(seeds, method, what)
                told.append(f"{value:.3f} (`{best}`)")
            rows.append(f"| {' | '.join(told)} |")
    return "\n".join(rows)


def details(name: str, seeds: Sequence[Found]) -> str:
    """All layers of one family, from the last on, by all methods: medians over the seeds."""
    rows = [f"| {name} | grid | bypass | {' | '.join(measure.NAMES)} |", "| --- " * (3 + len(measure.NAMES)) + "|"]
    for layer in seeds[0]["layers"]:
        place = layer["name"]
        mark = "**" if place in [each["default"] for each in seeds] else ""
        bypass = statistics.median(bypass_of(each, place) for each in seeds)
        cells = [f"{mark}`{place}`{mark}", "x".join(map(str, layer["grid"])), f"{bypass:.2f}"]
        for method in measure.NAMES:
            share, apart, empty = (middle(seeds, place, method, what) for what in ("share", "apart", "empty"))
            cells.append(f"{share:.3f}, {apart:+.3f}, {empty:.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write(kept: Found) -> None:
    """Put the tables where the markers are in the README."""
    families = kept["families"]
    about = tables.told(kept["conditions"])
    hidden = "\n\n".join(details(*item) for item in families.items())
    lines = [BEGIN, table(families), "<details><summary>All layers and methods</summary>", hidden, about, "</details>", END]
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN, 1)
    README.write_text(before + "\n\n".join(lines) + rest.split(END, 1)[1], "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=nets.FAMILIES, metavar="FAMILY", help="these families (all)")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, keep nothing")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="keep trained weights here, and use those that are there")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    kept: Found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"families": {}}
    for name in () if options.tables else options.only or nets.FAMILIES:
        seeds, epochs = (1, 1) if options.quick else (SEEDS, LONGER.get(name, EPOCHS))
        found = [measure_seed(name, seed, epochs, options.weights) for seed in range(seeds)]
        print(table({name: found}), details(name, found), sep="\n\n", flush=True)
        known = {**kept["families"], name: found}
        about = f"{PICTURES} of one shape, {PICTURES} of two, {scenes.SIDE} x {scenes.SIDE}"
        kept = {
            "conditions": conditions(pictures=about, epochs=f"{EPOCHS}; of {LONGER}", seeds=SEEDS),
            "families": {each: known[each] for each in nets.FAMILIES if each in known},
        }
        if not options.quick:
            RESULTS.write_text(json.dumps(kept) + "\n")
    if not options.quick:
        write(kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
