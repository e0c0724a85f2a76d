"""Whether any candidate for sharper maps beats what is offered, on EfficientNet-Lite0, with intervals.

    python benchmarks/fidelity/sharper.py [--steps 8] [--mosaics 24]     # needs: pip install '.[test,benchmark]'

Prints a Markdown table: for each method and candidate grid pointing and insertion less deletion, with 95 % intervals by
resampling mosaics and photographs; the differences to `gradcam++` and to `gradcam` of the same pictures, with theirs; the rank
correlation with the map of a class drawn at random; and processor time over that of a prediction. Only photographs count whose
top class is right. It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fidelity import games
from benchmarks.fidelity.candidates import ONE_LAYER, STAGES, THREE_LAYERS
from benchmarks.fidelity.games import Candidate
from benchmarks.fidelity.scenes import Classifier, Pixels, at_hand, mosaic, picture
from benchmarks.speed.conditions import processor

OFFERED = ("gradcam++", "gradcam", "layercam", "contrast")
"""Methods that the candidates are compared with; behind pooling and a linear layer `hirescam` and `xgradcam` are `gradcam`."""

RESAMPLES = 4000
ROUNDS = 5
"""Timed explanations of each candidate."""

Floats = NDArray[np.float64]


def known(classifier: Classifier) -> dict[str, tuple[Pixels, int]]:
    """The photographs whose top class is right, with it."""
    found = {}
    for name, right in at_hand().items():
        target = int(classifier.seen(picture(name)).logits.argmax())
        if target in right:
            found[name] = picture(name), target
    return found


def point(classifier: Classifier, made: Mapping[str, Candidate], scenes: Mapping[str, tuple[Pixels, int]], count: int) -> Floats:
    """Grid pointing: `[candidates, mosaics]`, each the mean of a mosaic's four quarters."""
    random = np.random.default_rng(0)
    found: list[list[float]] = [[] for _ in made]
    names = list(scenes)
    while len(found[0]) < count:
        chosen = [scenes[names[place]] for place in random.choice(len(names), 4, replace=False)]
        if len({target for _, target in chosen}) < 4:
            continue
        seen = classifier.seen(mosaic([pixels for pixels, _ in chosen]))
        for place, candidate in enumerate(made.values()):
            shares = [games.share_in_cell(candidate(seen, target), cell) for cell, (_, target) in enumerate(chosen)]
            found[place].append(float(np.nan_to_num(shares, nan=0.0).mean()))  # a map that is 0 points nowhere
        print(f"{len(found[0])} of {count} mosaics", file=sys.stderr, flush=True)
    return np.array(found)


def perturb(
    classifier: Classifier, made: Mapping[str, Candidate], scenes: Mapping[str, tuple[Pixels, int]], steps: int
) -> tuple[Floats, Floats]:
    """Insertion less deletion, and the likeness to another class's map: `[candidates, photographs]` each."""
    random = np.random.default_rng(1)
    gains: list[list[float]] = [[] for _ in made]
    others: list[list[float]] = [[] for _ in made]
    for number, (pixels, target) in enumerate(scenes.values(), 1):
        seen = classifier.seen(pixels)
        other = int((target + random.integers(1, 1000)) % 1000)
        for place, candidate in enumerate(made.values()):
            found = candidate(seen, target)
            gains[place].append(games.insertion_less_deletion(classifier, pixels, found, target, steps))
            others[place].append(games.likeness(found, candidate(seen, other)))
        print(f"{number} of {len(scenes)} photographs", file=sys.stderr, flush=True)
    return np.array(gains), np.array(others)


def costs(classifier: Classifier, made: Mapping[str, Candidate], pixels: Pixels, target: int) -> list[float]:
    """Processor time of each candidate's explanation, its forward passes with it, over that of a prediction, in turns."""
    ratios: list[list[float]] = [[] for _ in made]
    for turn in range(ROUNDS + 1):
        begun = time.process_time()
        classifier.probabilities([pixels], target)
        plain = time.process_time() - begun
        for place, candidate in enumerate(made.values()):
            begun = time.process_time()
            candidate(classifier.seen(pixels), target)
            if turn:
                ratios[place].append((time.process_time() - begun) / plain)
    return [statistics.median(each) for each in ratios]


def interval(values: Floats, picks: NDArray[np.int64]) -> str:
    """A mean with its 95 % interval."""
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def difference(values: Floats, base: Floats, picks: NDArray[np.int64]) -> str:
    """The mean difference of the same pictures with its 95 % interval; bold where all of it is above 0."""
    low, high = np.quantile((values - base)[picks].mean(1), (0.025, 0.975))
    shown = f"{(values - base).mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{shown}**" if low > 0 else shown


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of insertion and deletion (%(default)s)")
    parser.add_argument("--mosaics", type=int, default=24, help="of four photographs each (%(default)s)")
    parser.add_argument("--photographs", type=int, help="at most so many (all that are at hand)")
    parser.add_argument("--only", default="", metavar="WORD", help="candidates whose name holds this, beside what is offered")
    options = parser.parse_args()
    torch.set_num_threads(1)
    classifier = Classifier(further=STAGES[:-1])
    single, several = ({name: each for name, each in new.items() if options.only in name} for new in (ONE_LAYER, THREE_LAYERS))
    one = {f"`{name}`": games.method(name) for name in OFFERED} | single
    made = {**one, **several}
    scenes = dict(list(known(classifier).items())[: options.photographs])
    pointing = point(classifier, made, scenes, options.mosaics)
    gains, others = perturb(classifier, made, scenes, options.steps)
    scene = next(iter(scenes.values()))
    spent = costs(Classifier(), one, *scene) + costs(classifier, several, *scene)
    random = np.random.default_rng(2)
    mosaics, photographs = (random.integers(0, each.shape[1], (RESAMPLES, each.shape[1])) for each in (pointing, gains))
    print(f"{processor()}; {len(scenes)} photographs of {len(at_hand())}, {options.mosaics} mosaics, {options.steps} steps")
    print(row(["map", "grid pointing", "insertion less deletion", "other class", "time over a prediction"]))
    print(row(["---"] * 5))
    for place, name in enumerate(made):
        cells = [interval(pointing[place], mosaics), interval(gains[place], photographs), f"{others[place].mean():.2f}"]
        print(row([name, *cells, f"{spent[place]:.1f}"]))
    for what, values, picks in (("grid pointing", pointing, mosaics), ("insertion less deletion", gains, photographs)):
        print(row([what, "less `gradcam++`'s", "less `gradcam`'s"]))
        print(row(["---"] * 3))
        for place, name in list(enumerate(made))[2:]:
            print(row([name, *(difference(values[place], values[base], picks) for base in (0, 1))]))


if __name__ == "__main__":
    main()
