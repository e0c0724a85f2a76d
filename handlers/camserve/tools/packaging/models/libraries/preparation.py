"""Finds the configuration's keys that prepare pictures as another library's own code does, by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.pictures.preprocess import Preprocess

Geometry = Mapping[str, Any]
"""Some of the keys `resize`, `crop`, `fit` and `fill`."""

SIZES = ((301, 200), (300, 451), (320, 320), (97, 60))
"""(width, height) of the pictures that are tried."""

ONE_LEVEL = 1.01 / 255
"""One level of a picture: as far as two libraries differ that resample alike."""

ALIKE = 1 / 255
"""Mean difference up to which two libraries make the same of a picture, though they resample in other ways."""


@dataclass(frozen=True)
class Preparation:
    """How a library prepares pictures.

    Attributes:
        keys: of the configuration.
        flipped: the library hands over blue, green, red.
        note: what the user should hear.
        fault: why no keys do the same; empty: they do.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    flipped: bool = False
    note: str = ""
    fault: str = ""


def match_preparation(
    theirs: Callable[[Image.Image], Tensor],
    geometries: Iterable[Geometry],
    title: str,
    *,
    interpolation: str,
    declared: tuple[Sequence[float], Sequence[float]],
) -> Preparation:
    """Finds the keys that prepare pictures as `theirs` does, and says how far apart the two are.

    Args:
        theirs: an RGB picture to the model's input, `[channels, height, width]`.
        geometries: what its own configuration lets one think; each is tried on pictures of several sizes.
        title: what the user knows it as.
        interpolation: its name in the configuration.
        declared: mean and std as its configuration has them, taken where they are those that it uses.
    """
    try:
        values = _find_values(theirs)
        if isinstance(values, str):
            return Preparation(fault=f"{title} {values}")
        mean, std, flipped = values
        pictures = [draw_picture(*size) for size in SIZES]
        results = [theirs(each)[[2, 1, 0]] if flipped else theirs(each) for each in pictures]
    except Exception as error:  # noqa: BLE001 it is another library's code
        return Preparation(fault=f"{title} fails on a plain picture: {type(error).__name__}: {error}")
    if len(declared[0]) == 3 == len(declared[1]) and np.allclose([mean, std], declared, atol=1e-4):
        mean, std = list(declared[0]), list(declared[1])
    normal = {"interpolation": interpolation, "mean": mean, "std": std}
    best: tuple[_Difference, Mapping[str, Any]] | None = None
    for geometry in geometries:
        keys = {**geometry, **normal}
        difference = _compare(keys, pictures, results, std)
        if difference is not None and (best is None or difference.mean < best[0].mean):
            best = difference, keys
        if best is not None and best[0].mean <= ALIKE / 2 and not best[0].shifted:
            break
    if best is None:
        sizes = ", ".join(f"{a}x{b} to {_sides(each)}" for (a, b), each in zip(SIZES[:2], results, strict=False))
        return Preparation(normal, flipped, fault=f"{title} resizes and crops in a way that no keys express ({sizes})")
    return Preparation(best[1], flipped, best[0].tell(title))


@dataclass(frozen=True)
class _Difference:
    """How far two preparations are apart, in values from 0 to 1; `shifted`: where a margin is odd, one crops a pixel beside."""

    mean: float
    largest: float
    shifted: bool = False

    def tell(self, title: str) -> str:
        """What the user should hear; empty: they are alike."""
        words = []
        if self.largest > ONE_LEVEL:
            words.append(
                f"resamples otherwise than Pillow: on test pictures the two differ by {255 * self.mean:.1f} of 255 levels in the "
                f"mean, and by {255 * self.largest:.0f} at most"
            )
        if self.shifted:
            words.append("crops one pixel beside, where as many cannot be cut off on either side")
        return f"{title} {' and '.join(words)}" if words else ""


def _sides(tensor: Tensor) -> str:
    return f"{tensor.shape[2]}x{tensor.shape[1]}"


def _find_values(theirs: Callable[[Image.Image], Tensor]) -> tuple[list[float], list[float], bool] | str:
    """Finds mean and std of each channel from what becomes of black, white and red; or says why there are none."""
    black, white, red = (_centre(theirs(Image.new("RGB", SIZES[0], colour))) for colour in ("black", "white", "red"))
    if len(black) != 3:
        return f"makes {len(black)} channels of an RGB picture"
    span = white - black
    if not bool((span > 0).all()):
        return "does not make more of a brighter picture"
    shares = ((red - black) / span).round(decimals=3).tolist()
    if shares not in ([1, 0, 0], [0, 0, 1]):
        return "mixes the colours"
    flipped = shares == [0, 0, 1]
    order = [2, 1, 0] if flipped else [0, 1, 2]
    mean = [float(f"{each:.6g}") + 0.0 for each in (-black / span)[order].tolist()]
    std = [float(f"{each:.6g}") for each in (1 / span)[order].tolist()]
    return mean, std, flipped


def _centre(tensor: Tensor) -> Tensor:
    return tensor.double()[:, tensor.shape[1] // 2, tensor.shape[2] // 2]


def _compare(
    keys: Mapping[str, Any], pictures: Sequence[Image.Image], results: Sequence[Tensor], std: Sequence[float]
) -> _Difference | None:
    """How far the keys are from what the library makes of the pictures; None: further than resampling accounts for."""
    try:
        prepare = Preprocess(Config.from_mapping(keys))
    except ConfigError:
        return None
    scale = torch.tensor(std)[:, None, None]
    found: list[_Difference] = []
    for picture, theirs in zip(pictures, results, strict=True):
        try:
            ours = prepare(picture)
        except RequestError:
            return None
        if ours.shape != theirs.shape:
            return None
        least = _measure(ours * scale, theirs * scale, 0, 0)
        if least.mean > ALIKE / 2:
            beside = [(across, down) for across in (-1, 0, 1) for down in (-1, 0, 1)]
            least = min((_measure(ours * scale, theirs * scale, *each) for each in beside), key=lambda each: each.mean)
        if least.mean > ALIKE:
            return None
        found.append(least)
    return _Difference(max(each.mean for each in found), max(each.largest for each in found), any(each.shifted for each in found))


def _measure(ours: Tensor, theirs: Tensor, across: int, down: int) -> _Difference:
    """The difference where one of the two lies `across` and `down` pixels beside the other."""
    height, width = ours.shape[1:]
    rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(across, 0), width + min(across, 0))
    there = theirs[:, max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)]
    apart = (ours[:, rows, columns] - there).abs()
    return _Difference(float(apart.mean()), float(apart.max()), (across, down) != (0, 0))


def draw_picture(width: int, height: int) -> Image.Image:
    """Draws a picture of `width` x `height` pixels with what photographs have: slow changes, edges, texture and colour."""
    generator = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    slow = np.stack([np.sin(5 * across + k) * np.cos(4 * down - k) for k in (0, 1, 2)], axis=2)
    edges = ((np.floor(9 * across) + np.floor(7 * down)) % 3 - 1)[:, :, None] * np.array([1, -0.5, 0.7])
    noise = generator.normal(0, 0.15, (height, width, 3))
    return Image.fromarray((127.5 + 90 * np.clip(0.6 * slow + 0.4 * edges + noise, -1.4, 1.4)).clip(0, 255).astype(np.uint8))
