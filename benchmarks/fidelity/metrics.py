"""Whether a check's figures are those of Quantus: the same cells hidden, the same fill, the same scores.

    python benchmarks/fidelity/metrics.py

It needs an environment of its own: pip install '.[test]' scikit-image quantus==0.6.0

Quantus' `PixelFlipping` hides a map's pixels step by step, the brightest first; with a cell's pixels a step it hides cells, as
`explain/faithfulness` does. Its own fill "mean" is the mean of all channels of what is left of the picture after each step;
ours, and that of Petsiuk et al. 2018, stays as it is. So it is asked twice: with its fill, and with ours.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
import quantus
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.fidelity import games
from benchmarks.fidelity.scenes import FURTHER, SHIPPED, SIDE, Classifier, picture, prepared
from camserve.core.messages.checks import SHARES
from camserve.explain.faithfulness import judge, perturb
from camserve.explain.methods import scale_maps

Floats = NDArray[np.float32]


def flip(network: nn.Module, inputs: Floats, target: int, ranks: Floats, fill: Floats | None) -> Floats:
    """Quantus' scores `[cells]` with 1, 2, ... of a map's cells hidden.

    Args:
        inputs: `[1, C, H, W]`.
        ranks: of the cells `[h, w]`, the brightest largest, each another.
        fill: what hides them, `[1, C, H, W]`; None: Quantus' own "mean".
    """
    cell = SIDE // ranks.shape[0]
    spread = np.kron(ranks, np.ones((cell, cell), np.float32))[None, None]

    def replace(arr: Floats, indices: NDArray[np.int64], **_others: Any) -> Floats:
        assert fill is not None
        changed = arr.copy()
        changed[0, indices[0]] = fill.reshape(-1)[indices[0]]
        return changed

    metric = quantus.PixelFlipping(
        features_in_step=cell * cell,  # of one channel: a cell takes as many steps as there are channels
        **({"perturb_baseline": "mean"} if fill is None else {"perturb_func": replace}),
        return_aggregate=False,
        disable_warnings=True,
        display_progressbar=False,
        normalise=False,
    )
    scores = metric(network, inputs, np.array([target]), spread, channel_first=True, softmax=True, device="cpu")
    return np.array(scores[0], np.float32)[inputs.shape[1] - 1 :: inputs.shape[1]]


def main() -> None:
    """Print a table of the largest differences."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    classifier = Classifier()
    print("| picture | hidden, our fill | hidden, Quantus' fill | area under all steps | ours, of five points |")
    print("| --- | --- | --- | --- | --- |")
    for label, target in {**SHIPPED, **FURTHER}.items():
        seen = classifier.seen(picture(label))
        heatmap = scale_maps(games.method("gradcam++")(seen, target)[None])[0][0]
        tensor = prepared([picture(label)])
        asked = torch.stack(list(perturb(tensor[0], heatmap)))
        with torch.no_grad():
            scores = classifier.network(asked).softmax(1)[:, target].tolist()
            whole = float(classifier.network(tensor).softmax(1)[0, target])
        check = judge(whole, scores)
        order = np.argsort(-heatmap.ravel(), kind="stable")
        ranks = np.empty(heatmap.size, np.float32)
        ranks[order] = np.arange(heatmap.size, 0, -1)
        fill = tensor.mean((2, 3), keepdim=True).expand_as(tensor).numpy()
        counts = [max(1, round(share * heatmap.size)) - 1 for share in SHARES]
        ours, theirs = (
            flip(classifier.network, tensor.numpy(), target, ranks.reshape(heatmap.shape), each) for each in (fill, None)
        )
        hidden = np.array(check.brightest.hidden["mean"])
        errors = [float(np.abs(each[counts] - hidden).max()) for each in (ours, theirs)]
        full = np.concatenate([[whole], ours])
        exact = float(((full[1:] + full[:-1]) / 2).mean())
        points = np.concatenate([[whole], hidden, [check.empty["mean"]]])
        coarse = float((points[1:] + points[:-1]) / 2 @ np.diff([0, *SHARES, 1]))
        print(f"| {label} | {errors[0]:.1g} | {errors[1]:.1g} | {exact:.3f} | {coarse:.3f} |", flush=True)


if __name__ == "__main__":
    main()
