"""Could a rule that has no pictures find the layer that tells two objects apart? Evidence is planted in noise, and looked for.

    python benchmarks/layers/planted.py FOLDER      # the trained networks, as `run.py --weights FOLDER` keeps them

Pictures of noise are changed along the scores' gradient, so that one place of each speaks for a class and against another, and a
second place the other way round. Layers whose maps lie on the right place of the two could be taken: the last that does so nearly
as well as the best. Prints what is then shown of real scenes, beside what the default layer and the best one show of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import torch
from torch import Tensor, nn

from benchmarks.layers import measure, nets
from benchmarks.layers.run import RESULTS, bypass_of, figure
from benchmarks.layers.scenes import CLASSES, SIDE, Box, Scenes
from camserve.capture import open_backend, synthesize_pictures
from camserve.capture.choose.bypass import MAX_BYPASS
from camserve.core.config import Config
from camserve.explain.methods import choose_method

PICTURES = 16
SEEDS = 3
PLACE = 12
"""Pixels of a place's side."""

STEPS, STRENGTH = 10, 0.3
"""How often a picture is changed, and by how much, in its standard deviations."""

NEARLY = 0.9
"""Of what the best layer shows of planted evidence: the last layer that shows as much is taken."""

WITHIN = 0.03
"""A layer that shows so much less than the best is as good."""


def plant(model: nn.Module, seed: int) -> Scenes:
    """Make pictures of noise of which one place speaks for a class, and another for another class."""
    generator = torch.Generator().manual_seed(seed)
    pictures = synthesize_pictures((SIDE, SIDE), PICTURES, seed=seed + 1)
    boxes, others = zip(*(_draw_places(generator) for _ in range(PICTURES)), strict=True)
    classes = torch.randint(CLASSES, (PICTURES,), generator=generator)
    rivals = (classes + 1 + torch.randint(CLASSES - 1, (PICTURES,), generator=generator)) % CLASSES
    signs = torch.stack([_mask(one) - _mask(other) for one, other in zip(boxes, others, strict=True)])[:, None]
    least, most, step = pictures.amin(), pictures.amax(), STRENGTH * pictures.std()
    rows = torch.arange(PICTURES)
    for _ in range(STEPS):
        pictures = pictures.detach().requires_grad_()
        scores = model(pictures * 1)  # a model may overwrite its input
        (slope,) = torch.autograd.grad((scores[rows, classes] - scores[rows, rivals]).sum(), pictures)
        pictures = (pictures + step * slope.sign() * signs).clamp(least, most)
    return Scenes(pictures.detach(), classes, torch.tensor(boxes), torch.tensor(others))


def _draw_places(generator: torch.Generator) -> tuple[Box, Box]:
    """Draw two places that do not touch."""
    while True:
        (left, top), (right, bottom) = torch.randint(SIDE - PLACE + 1, (2, 2), generator=generator).tolist()
        if max(abs(left - right), abs(top - bottom)) >= PLACE:
            return (left, top, left + PLACE, top + PLACE), (right, bottom, right + PLACE, bottom + PLACE)


def _mask(box: Box) -> Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def tell_apart(model: nn.Module, method: str) -> dict[str, float]:
    """Return how well each layer's maps tell planted evidence for two classes apart: the mean over seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        planted = plant(model, seed)
        for layer in measure.measure(model, planted, planted).layers:
            found.setdefault(layer.name, []).append(layer.shown[method].apart)
    return {name: statistics.mean(values) for name, values in found.items()}


def compare(model: nn.Module, found: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return a network's default method, and three layers: its default, the one that planted evidence tells, and the best."""
    backend = open_backend(model, Config(channels_last=False), (SIDE, SIDE), torch.device("cpu"))
    method = choose_method(Config(), backend.uneven, backend.cancels)
    apart = tell_apart(model, method)
    layers = [each["name"] for each in found["layers"] if each["name"] in apart]
    layers = [name for name in layers if bypass_of(found, name) <= MAX_BYPASS]
    best = max(layers, key=lambda name: figure(found, name, method, "apart"))
    enough = NEARLY * max(apart[name] for name in layers)
    return method, (found["default"], next(name for name in layers if apart[name] >= enough), best)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, metavar="FOLDER")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| network, seed | method | default: share, apart | planted evidence | best apart |", "| --- " * 5 + "|", sep="\n")
    as_good: list[list[bool]] = []
    for name, seeds in json.loads(RESULTS.read_text())["families"].items():
        for seed, found in enumerate(seeds):
            file = options.weights / f"{name}, seed {seed}.pt"
            if not file.is_file():
                continue
            model = nets.FAMILIES[name]()
            model.load_state_dict(torch.load(file, weights_only=True)[0])
            method, layers = compare(model.eval(), found)
            shown = [(figure(found, layer, method, "share"), figure(found, layer, method, "apart")) for layer in layers]
            as_good.append([apart >= shown[2][1] - WITHIN for _, apart in shown])
            cells = [f"`{layer}` {share:.3f}, {apart:+.3f}" for layer, (share, apart) in zip(layers, shown, strict=True)]
            print(f"| {name}, {seed} | `{method}` | {' | '.join(cells)} |", flush=True)
    counts = [sum(column) for column in zip(*as_good, strict=True)]
    print(f"\nWithin {WITHIN} of the best, of {len(as_good)}: the default {counts[0]}, planted evidence {counts[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
