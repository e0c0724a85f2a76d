"""Whether `check` tells maps that are borne out from others: EfficientNet-Lite0 on crops of photographs, map by map.

    python benchmarks/fidelity/checks.py [--crops 3]       # needs: pip install '.[test,benchmark]'

Prints, for each kind of map, how often it is called supported, weak and unsupported, with Wilson's 95 % interval of the first,
and the quartiles of `support`; and the same of photographs that the thresholds were not chosen on. Only crops count whose class
the classifier knows: the top class is the photograph's own.
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

from benchmarks.fidelity import games
from benchmarks.fidelity.scenes import SHIPPED, Classifier, Seen, at_hand, crop, prepared
from benchmarks.speed.conditions import processor
from camserve.core.messages.checks import VERDICTS
from camserve.explain.faithfulness import PASSES, judge, perturb

Map = NDArray[np.float32]
Verdicts = dict[str, list[tuple[str, float, str]]]
"""By kind of map: each one's verdict, its `support`, and its photograph."""


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


def tabulate(found: Verdicts) -> Table:
    """A row for each kind of map."""
    table = Table("map", *VERDICTS, "supported, 95 %", "support, quartiles", box=box.MARKDOWN)
    for kind, verdicts in found.items():
        counts = [sum(verdict == each for verdict, *_ in verdicts) for each in VERDICTS]
        low, high = wilson(counts[0], len(verdicts))
        quartiles = np.quantile([support for _, support, _ in verdicts], (0.25, 0.5, 0.75))
        shares = [f"{count / len(verdicts):.0%}" for count in counts]
        table.add_row(kind, *shares, f"{max(low, 0):.0%} to {high:.0%}", " / ".join(f"{each:.2f}" for each in quartiles))
    return table


def main() -> None:
    """Check every kind of map of each crop, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=3, help="of each photograph (%(default)s)")
    options = parser.parse_args()
    console = Console(width=150)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    classifier, made = Classifier(), makers(random)
    found: Verdicts = {kind: [] for kind in made}
    spent = 0.0
    for name, right in track(at_hand().items(), "photographs", console=Console(stderr=True)):
        for _ in range(options.crops):
            pixels = crop(name, random)
            with torch.enable_grad():
                seen = classifier.seen(pixels)
            target = int(seen.logits.argmax())
            if target not in right:
                continue
            whole = float(seen.logits.softmax(0)[target])
            for kind, make in made.items():
                begun = time.process_time()
                asked = torch.stack(list(perturb(prepared([pixels])[0], make(seen, target))))
                scores = classifier.capture.forward(asked, ()).logits.softmax(1)[:, target].tolist()
                check = judge(whole, scores)
                spent += time.process_time() - begun
                found[kind].append((check.verdict, check.support, name))
    checks = sum(map(len, found.values()))
    for told, names in (("all", set(at_hand())), ("those that the thresholds were not chosen on", set(at_hand()) - set(SHIPPED))):
        chosen = {kind: [each for each in verdicts if each[2] in names] for kind, verdicts in found.items()}
        first = next(iter(chosen.values()))
        console.print(f"{len(first)} crops of {len({name for *_, name in first})} photographs, {told}")
        if first:
            console.print(tabulate(chosen))
    console.print(f"{processor()}; {PASSES} pictures a check, {spent / checks:.2f} s of processor time")


if __name__ == "__main__":
    main()
