"""A real classifier and photographs whose classes it may know, alone and in mosaics: what fidelity is measured on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.drift import crops
from camserve.capture import Captured, open_backend
from camserve.core.config import Config
from camserve.tools.packaging.models.demo import load_demo

SHIPPED = {"cat": 285, "coffee": 967, "rocket": 657, "china": 698, "flower": 985}
"""Photographs of this repository's and of scikit-learn's, and their ImageNet classes."""

FURTHER = {"camera": 872, "stereo_motorcycle": 665}
"""Further ones, which scikit-image brings."""

CATS = frozenset({281, 282, 283, 284, 285})
"""Classes of which each is right for a cat."""

SIDE = 224
LAYER = "features"
CPU = torch.device("cpu")

Pixels = NDArray[np.uint8]


@cache
def _labelled() -> dict[str, Path]:
    """Photographs of ImageNet's classes that Foolbox brings, if it is installed: their names end in the class's index."""
    found = find_spec("foolbox")
    folders = found.submodule_search_locations if found else None
    return {path.stem: path for folder in folders or () for path in sorted(Path(folder, "data").glob("imagenet_*.jpg"))}


def at_hand() -> dict[str, frozenset[int]]:
    """All photographs that this environment has, with the classes that are right for each."""
    found = {name: frozenset({target}) for name, target in SHIPPED.items()} | {"cat": CATS}
    if find_spec("skimage"):
        found |= {name: frozenset({target}) for name, target in FURTHER.items()}
    return found | {name: frozenset({int(name.rpartition("_")[2])}) for name in _labelled()}


@cache
def photograph(name: str) -> Pixels:
    """A photograph of `at_hand`, `[H, W, 3]`."""
    if name in SHIPPED:
        return np.asarray(crops.photograph(name))
    if name in _labelled():
        return np.asarray(Image.open(_labelled()[name]).convert("RGB"))
    import skimage.data  # noqa: PLC0415 only two photographs need it

    found = getattr(skimage.data, name)()
    found = found[0] if isinstance(found, tuple) else found
    return np.dstack([found] * 3) if found.ndim == 2 else np.asarray(found[..., :3])


def picture(name: str) -> Pixels:
    """The centre square `[SIDE, SIDE, 3]` of a photograph whose shorter side is scaled to SIDE / 0.875."""
    found = photograph(name)
    scale = SIDE / 0.875 / min(found.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    found = np.asarray(cv2.resize(found, None, fx=scale, fy=scale, interpolation=way), dtype=np.uint8)
    top, left = (found.shape[0] - SIDE) // 2, (found.shape[1] - SIDE) // 2
    return np.asarray(found[top : top + SIDE, left : left + SIDE], dtype=np.uint8)


def crop(name: str, random: np.random.Generator) -> Pixels:
    """A square `[SIDE, SIDE, 3]` of a photograph, of 65 to 100 % of its shorter side, anywhere; half of them mirrored."""
    whole = photograph(name)
    side = int(min(whole.shape[:2]) * random.uniform(0.65, 1))
    top, left = (int(random.integers(0, most - side + 1)) for most in whole.shape[:2])
    found = cv2.resize(whole[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(found[:, ::-1] if random.random() < 0.5 else found, dtype=np.uint8)


def mosaic(cells: Sequence[Pixels]) -> Pixels:
    """Four pictures in one, `[2 SIDE, 2 SIDE, 3]`, rows first."""
    return np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])


def prepared(pictures: Sequence[NDArray[np.generic]]) -> Tensor:
    """The model's input `[N, 3, H, W]`, (x - 127) / 128."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2).sub(127).div(128)


@dataclass(frozen=True)
class Seen:
    """One picture that passed through a model: activation `[1, C, h, w]`, logits `[K]`, and gradients of any class.

    Attributes:
        pixels: the picture `[H, W, 3]`.
        again: shows the same model another picture.
    """

    captured: Captured
    pixels: NDArray[Any]
    again: Callable[[NDArray[Any]], Seen]
    _gradients: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False, compare=False)
    _others: dict[str, list[Seen]] = field(default_factory=dict, repr=False, compare=False)

    def other(self, name: str, make: Callable[[Seen], list[Seen]]) -> list[Seen]:
        """The same picture seen otherwise, made once, so that candidates share the passes."""
        if name not in self._others:
            self._others[name] = make(self)
        return self._others[name]

    @cached_property
    def activation(self) -> Tensor:
        return self.captured.activation(LAYER)

    @cached_property
    def logits(self) -> Tensor:
        return self.captured.logits[0]

    def gradient(self, target: int, layer: str = LAYER) -> Tensor:
        """`[1, C, h, w]`, or `[1, C, 1, 1]` where all cells have the same."""
        if (target, layer) not in self._gradients:
            self._gradients[target, layer] = self.captured.gradients(layer, torch.tensor([0]), torch.tensor([target]))
        return self._gradients[target, layer]

    def contrasts(self, target: int, count: int) -> list[int]:
        """The most probable other classes."""
        others = self.logits.clone()
        others[target] = -torch.inf
        return [int(index) for index in others.topk(count).indices]


class Classifier:
    """A network and camserve's capture of it, at `LAYER` and at further layers."""

    def __init__(self, network: nn.Module | None = None, further: Sequence[str] = ()) -> None:
        self.network = network or load_demo().model
        self._layers = (LAYER, *further)
        config = Config(layers=self._layers, channels_last=False)
        self.capture = open_backend(self.network, config, (SIDE, SIDE), CPU).capture

    def seen(self, pixels: NDArray[Any]) -> Seen:
        return Seen(self.capture.forward(prepared([pixels]), list(self._layers)), pixels, self.seen)

    def probabilities(self, pictures: Sequence[NDArray[np.generic]], target: int) -> NDArray[np.float32]:
        return self.capture.forward(prepared(pictures), ()).logits.softmax(1)[:, target].numpy()

    def randomised(self, *, top: bool = False, seed: int = 0) -> Classifier:
        """The same network with a random classifier; `top`: the trunk's last convolution and block are random too."""
        network = copy.deepcopy(self.network)
        torch.manual_seed(seed)
        trunk = [*network.get_submodule("features").children()]
        parts = [network.get_submodule("classifier"), *(trunk[-4:] if top else ())]
        for module in [each for part in parts for each in part.modules()]:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=float(module.weight.std()))
        return Classifier(network, self._layers[1:])
