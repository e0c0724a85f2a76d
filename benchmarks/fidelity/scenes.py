"""A real classifier and photographs whose classes it knows, alone and in mosaics: what fidelity is measured on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.drift import crops
from camserve.capture import Captured, open_backend
from camserve.core.config import Config
from camserve.tools.packaging.models.demo import load_demo

SHIPPED = {"cat": 285, "coffee": 967, "rocket": 657, "china": 698, "flower": 985}
"""Photographs of this repository's and of scikit-learn's, and their ImageNet classes."""

FURTHER = {"camera": 872, "stereo_motorcycle": 665}
"""Further ones, which scikit-image brings."""

SIDE = 224
LAYER = "features"
CPU = torch.device("cpu")

Pixels = NDArray[np.uint8]


def picture(name: str) -> Pixels:
    """The centre square `[SIDE, SIDE, 3]` of a photograph whose shorter side is scaled to SIDE / 0.875."""
    if name in SHIPPED:
        found = np.asarray(crops.photograph(name))
    else:
        import skimage.data  # noqa: PLC0415 only two photographs need it

        found = getattr(skimage.data, name)()
        found = found[0] if isinstance(found, tuple) else found
        found = np.dstack([found] * 3) if found.ndim == 2 else found[..., :3]
    scale = SIDE / 0.875 / min(found.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    found = cv2.resize(found, None, fx=scale, fy=scale, interpolation=way)
    top, left = (found.shape[0] - SIDE) // 2, (found.shape[1] - SIDE) // 2
    return np.asarray(found[top : top + SIDE, left : left + SIDE], dtype=np.uint8)


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

    @cached_property
    def activation(self) -> Tensor:
        return self.captured.activation(LAYER)

    @cached_property
    def logits(self) -> Tensor:
        return self.captured.logits[0]

    def gradient(self, target: int, layer: str = LAYER) -> Tensor:
        """`[1, C, h, w]`, or `[1, C, 1, 1]` where all cells have the same."""
        return self.captured.gradients(layer, torch.tensor([0]), torch.tensor([target]))

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
