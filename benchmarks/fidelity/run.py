"""Whether maps tell the truth, on a real model: every method, two baselines, candidates for `contrast`, and other libraries.

    python benchmarks/fidelity/run.py [--steps 12]      # needs: pip install '.[test,benchmark]'

Prints Markdown tables. Grid pointing: mosaics of four pictures; the share of a class's map that lies in its own picture's
quarter (chance 0.25), and how often the map's peak does. Insertion less deletion: how much sooner the class comes up when its
brightest pixels are shown first than it goes when they are hidden first. Randomisation: the rank correlation of the map with
that of another class drawn at random, and with that of the same class under a random classifier, or a random top of the trunk
too; a map that explains a class changes with it. Other libraries: the largest difference between a heatmap and the paper's
equation in float64.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.fidelity import games, peers
from benchmarks.fidelity.games import Candidate
from benchmarks.fidelity.scenes import FURTHER, SHIPPED, SIDE, Classifier, mosaic, picture
from benchmarks.speed.conditions import processor
from camserve.explain.methods import METHODS

CLASSES = {**SHIPPED, **FURTHER}
DRAWS = 10
"""Random classes and random classifiers that are averaged over."""

MAPS = 3
"""Random maps that are averaged over."""

LOG = Console(stderr=True)


def candidates() -> dict[str, Candidate]:
    """The methods, and what else could be called contrast."""
    found = {f"`{name}`": games.method(name) for name in METHODS}
    for count in (3, 10):
        found[f"`contrast` with {count} rivals"] = games.finer(1, count)
    found["`contrast`, gamma 0.6"] = games.finer(0.6, 5)
    found["Grad-CAM++ less the mean of 5 rivals' maps"] = games.less_contrasts(5)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and worst."""
    return f"{np.mean(values):.3f} ({np.min(values):.3f})"


def grid(classifier: Classifier, made: Mapping[str, Candidate]) -> tuple[int, dict[str, list[str]]]:
    """How many values, and for each candidate mean and worst share, and how many peaks are in the right quarter."""
    shares: dict[str, list[float]] = {name: [] for name in made}
    peaks: dict[str, list[bool]] = {name: [] for name in made}
    total = 4 * math.comb(len(CLASSES), 4)
    for seen, cell, target in track(games.grid_pointing(classifier, CLASSES), "grid pointing", total, console=LOG):
        for name, candidate in made.items():
            found = candidate(seen, target)
            shares[name].append(games.share_in_cell(found, cell))
            peaks[name].append(games.peak_in_cell(found, cell))
    count = len(next(iter(peaks.values())))
    return count, {name: [spread(shares[name]), f"{sum(peaks[name])}"] for name in made}


def perturbed(classifier: Classifier, made: Mapping[str, Sequence[Candidate]], steps: int) -> dict[str, str]:
    """For each candidate insertion less deletion over the pictures; several candidates of one name are averaged."""
    values: dict[str, list[float]] = {name: [] for name in made}
    for label, target in track(CLASSES.items(), "insertion and deletion", console=LOG):
        pixels = picture(label)
        seen = classifier.seen(pixels)
        for name, drawn in made.items():
            maps = [candidate(seen, target) for candidate in drawn]
            gains = [games.insertion_less_deletion(classifier, pixels, found, target, steps) for found in maps]
            values[name].append(float(np.mean(gains)))
    return {name: spread(each) for name, each in values.items()}


def randomised(classifier: Classifier, made: Mapping[str, Candidate]) -> dict[str, list[str]]:
    """For each candidate the mean likeness to another class's map, and to the same class's map of two random networks."""
    random = np.random.default_rng(0)
    drawn: Sequence[Callable[[int], Classifier]] = (
        lambda seed: classifier.randomised(seed=seed),
        lambda seed: classifier.randomised(top=True, seed=seed),
    )
    values: dict[str, list[list[float]]] = {name: [[], [], []] for name in made}
    pictures = {label: picture(label) for label in CLASSES}
    plain = {label: classifier.seen(pixels) for label, pixels in pictures.items()}
    for seed in track(range(DRAWS), "randomisation", console=LOG):
        others = [make(seed) for make in drawn]
        for label, target in CLASSES.items():
            other = int(random.choice([index for index in range(1000) if index != target]))
            seen = [each.seen(pictures[label]) for each in others]
            for name, candidate in made.items():
                own = candidate(plain[label], target)
                compared = [candidate(plain[label], other), *(candidate(each, target) for each in seen)]
                for column, found in zip(values[name], compared, strict=True):
                    column.append(games.likeness(own, found))
    return {name: [f"{np.mean(column):.2f}" for column in columns] for name, columns in values.items()}


def compared(classifier: Classifier) -> list[str]:
    """Rows of a table: for each method, the worst error of each library over the pictures, and over mosaics."""
    names = list(CLASSES)
    scenes = [(picture(name), CLASSES[name]) for name in names]
    mosaics = [(mosaic([picture(each) for each in names[start : start + 4]]), CLASSES[names[start]]) for start in range(4)]
    rows = []
    for what, chosen in (("a picture, 7x7", scenes), ("a mosaic, 14x14", mosaics)):
        found = [peers.errors(classifier, *each) for each in track(chosen, f"other libraries, {what}", console=LOG)]
        for name in peers.PEERS:
            worst = {library: max(each[name][library] for each in found) for library in found[0][name]}
            cells = [f"{worst[library]:.1g}" if library in worst else "" for library in peers.LIBRARIES]
            rows.append(row([f"`{name}`", what, *cells]))
    return rows


def row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[str]) -> None:
    """Prints a Markdown table."""
    print("\n".join(["", row(head), row(["---"] * len(head)), *rows]))


def conditions(arguments: argparse.Namespace) -> str:
    packages = ("torch", "numpy", "opencv-python-headless", "grad-cam", "torchcam", "captum")
    lines = {
        "date": f"{date.today()}",
        "python": f"{platform.python_version()} on {platform.system()}, {processor()}, float32",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "model": "EfficientNet-Lite0 with its ImageNet weights, input (x - 127) / 128",
        "layer": "features, behind a ReLU6: 1280 x 14 x 14 for a mosaic, 1280 x 7 x 7 for a picture",
        "pictures": ", ".join(f"{name} ({target})" for name, target in CLASSES.items()) + f"; centre {SIDE}",
        "mosaics": f"{2 * SIDE} x {2 * SIDE}, every 4 of the {len(CLASSES)} pictures",
        "insertion": f"into a Gaussian blur of 10 pixels; deletion to grey 127; {arguments.steps} steps; shares of p",
        "random": f"{DRAWS} draws of a class, a classifier, and a top of the trunk (last convolution and block); {MAPS} of a map",
    }
    return "\n".join(f"{name + ':':11}{value}" for name, value in lines.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of insertion and deletion (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(conditions(arguments))
    classifier, made = Classifier(), candidates()
    baselines: dict[str, Sequence[Candidate]] = {
        "a blob in the middle": [games.centre],
        "a random map": [games.noise(seed) for seed in range(MAPS)],
    }
    count, pointed = grid(classifier, made)
    gains = perturbed(classifier, {**{name: [each] for name, each in made.items()}, **baselines}, arguments.steps)
    changed = randomised(classifier, made)
    head = ["method", "grid pointing", f"peaks of {count}", "insertion less deletion"]  # means; in brackets the worst
    head += ["other class", "random classifier", "random top"]
    empty: Mapping[str, list[str]] = {name: [""] * 3 for name in baselines}
    table(
        head,
        [
            row([name, *pointed.get(name, ["0.25" if name == "a random map" else "", ""]), gain, *{**empty, **changed}[name]])
            for name, gain in gains.items()
        ],
    )
    table(["heatmap's error", "of", *peers.LIBRARIES], compared(classifier))


if __name__ == "__main__":
    main()
