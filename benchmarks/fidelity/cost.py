"""What a check costs, and several layers: an archive's model explains one picture with and without, in turns, by processor time.

    python benchmarks/fidelity/cost.py [ARCHIVE] [--rounds 15]     # default: model_store/efficientnet_lite0.mar

Prints milliseconds, and how many times as long an explanation takes with a check; medians with quartiles.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.speed.conditions import processor
from camserve import Model
from camserve.explain.faithfulness import PASSES


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", type=Path, default=ROOT / "model_store" / "efficientnet_lite0.mar")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model.from_archive(options.archive)
    picture = Image.open(ROOT / "examples" / "cat.jpg").convert("RGB")
    ways: dict[str, Callable[[], object]] = {
        "prediction": lambda: model.predict(picture),
        "explanation": lambda: model.explain(picture),
        "explanation with a check": lambda: model.explain(picture, check=True),
    }
    if "refinecam" in model.served.methods:
        ways[f"refinecam of {len(model.served.together)} layers"] = lambda: model.explain(picture, method="refinecam")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - begun)
    print(f"{processor()}; {options.archive.name}, {PASSES} passes a check, one thread, {options.rounds} turns")
    print("| one picture | milliseconds | over an explanation | over a prediction |\n| --- | --- | --- | --- |")
    for name, spent in seconds.items():
        ratios = [quartiles(np.array(spent) / np.array(seconds[base])) for base in ("explanation", "prediction")]
        print(f"| {name} | {quartiles(1000 * np.array(spent))} | {ratios[0]} | {ratios[1]} |")


def quartiles(values: NDArray[np.float64]) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
