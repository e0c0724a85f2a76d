"""Whether `check` tells maps that are borne out from others: EfficientNet-Lite0 on crops of photographs, map by map.

    python benchmarks/fidelity/checks.py [--crops 40]       # needs: pip install '.[test]'

Prints, for each kind of map, how often it is called supported, weak and unsupported, with Wilson's 95 % interval of the first,
and the quartiles of `support`. Only crops count whose class the classifier knows: the top class is the photograph's own.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.drift import crops
from benchmarks.fidelity import games
from benchmarks.fidelity.scenes import SHIPPED, SIDE, Classifier, Seen, prepared
from benchmarks.speed.conditions import processor
from camserve.core.messages import VERDICTS
from camserve.explain.faithfulness import PASSES, judge, perturb

Map = NDArray[np.float32]
CATS = frozenset({281, 282, 283, 284, 285})


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, hits / count
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def makers(random: np.random.Generator) -> dict[str, Callable[[Seen, int], Map]]:
    """The kinds of maps; the first two speak of the class."""
    plus, layer = games.method("gradcam++"), games.method("layercam")

    def ours(seen: Seen, target: int) -> Map:
        return plus(seen, target).numpy()

    def of_layercam(seen: Seen, target: int) -> Map:
        return layer(seen, target).numpy()

    def random_map(seen: Seen, _target: int) -> Map:
        return random.random(seen.activation.shape[2:], np.float32)

    def moved(seen: Seen, target: int) -> Map:
        rows, columns = seen.activation.shape[2:]
        return np.roll(ours(seen, target), (rows // 2 + random.integers(2), columns // 2 + random.integers(2)), (0, 1))

    def of_another(seen: Seen, _target: int) -> Map:
        return ours(seen, int(random.integers(1000)))

    def inverse(seen: Seen, target: int) -> Map:
        return 1 - ours(seen, target)

    return {
        "Grad-CAM++": ours,
        "LayerCAM": of_layercam,
        "Grad-CAM++ of a class at random": of_another,
        "Grad-CAM++, moved by half its size": moved,
        "random": random_map,
        "Grad-CAM++, bright and dark exchanged": inverse,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=40, help="of each photograph (default: 40)")
    options = parser.parse_args()
    console = Console(width=150)
    torch.set_grad_enabled(False)
    random = np.random.default_rng(0)
    classifier = Classifier()
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in makers(random)}
    spent, checks, used = 0.0, 0, 0
    for name in track(list(crops.at_hand()), "photographs", console=Console(stderr=True)):
        known = CATS if name == "cat" else {SHIPPED[name]}
        for _ in range(options.crops):
            pixels = np.asarray(crops.crop(name, random).resize((SIDE, SIDE)))
            with torch.enable_grad():
                seen = classifier.seen(pixels)
            target = int(seen.logits.argmax())
            if target not in known:
                continue
            used += 1
            if used % 5 == 0:
                print(f"{used} crops", file=sys.stderr, flush=True)
            whole = float(seen.logits.softmax(0)[target])
            for kind, make in makers(random).items():
                begun = time.process_time()
                asked = torch.stack(list(perturb(prepared([pixels])[0], make(seen, target))))
                scores = classifier.capture.forward(asked, ()).logits.softmax(1)[:, target].tolist()
                check = judge(whole, scores)
                spent, checks = spent + time.process_time() - begun, checks + 1
                found[kind].append((check.verdict, check.support))
    table = Table("map", *VERDICTS, "supported, 95 %", "support, quartiles", box=box.MARKDOWN)
    for kind, verdicts in found.items():
        counts = [sum(verdict == each for verdict, _ in verdicts) for each in VERDICTS]
        low, high = wilson(counts[0], len(verdicts))
        quartiles = np.quantile([support for _, support in verdicts], (0.25, 0.5, 0.75))
        shares = [f"{count / len(verdicts):.0%}" for count in counts]
        table.add_row(kind, *shares, f"{low:.0%} to {high:.0%}", " / ".join(f"{each:.2f}" for each in quartiles))
    shown = f"{used} crops of {len(crops.at_hand())} photographs"
    console.print(f"{processor()}; {shown}; {PASSES} pictures a check, {spent / checks:.2f} s of processor time")
    console.print(table)


if __name__ == "__main__":
    main()
