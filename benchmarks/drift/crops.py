#!/usr/bin/env python3
"""Traffic to try monitoring on: varied crops of real photographs, as a fixed camera would take them, and ways to spoil them.

benchmarks/drift/crops.py FOLDER [--count 800] [--spoil blur]

Where this Python lacks what it needs, it runs in the clone's .venv, which scripts/demo.sh makes.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__" and any(find_spec(name) is None for name in ("numpy", "PIL", "rich")):
    PYTHON = ROOT / ".venv" / "bin" / "python"
    if not PYTHON.exists() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("error: this Python lacks NumPy, Pillow or rich; scripts/setup.sh makes an environment that has them")
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

import argparse
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from rich.progress import track

EXAMPLES = ROOT / "examples"
SIDE = 256

# Where the thing is that a photograph shows, and how large a square around it is, as shares of width and height.
SUBJECTS = {
    "cat": (0.52, 0.45, 0.72),
    "coffee": (0.45, 0.50, 0.78),
    "rocket": (0.50, 0.50, 0.80),
    "china": (0.50, 0.55, 0.80),
    "flower": (0.50, 0.50, 0.80),
}
NAMES = tuple(SUBJECTS)
FURTHER = tuple(name for name in NAMES if not (EXAMPLES / f"{name}.jpg").is_file())
"""Those that scikit-learn brings."""

Spoil = Callable[[Image.Image], Image.Image]


@cache
def photograph(name: str) -> Image.Image:
    """One of `NAMES`: three of ours, two that scikit-learn brings."""
    path = EXAMPLES / f"{name}.jpg"
    if name in FURTHER:
        import sklearn.datasets  # noqa: PLC0415 only two photographs need it

        path = Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg"
    return Image.open(path).convert("RGB")


def at_hand() -> tuple[str, ...]:
    """Those of `NAMES` that this environment has."""
    return NAMES if find_spec("sklearn") else tuple(name for name in NAMES if name not in FURTHER)


def crop(name: str, random: np.random.Generator, shift: float = 0.0, fixed: bool = False) -> Image.Image:
    """A crop `SIDE` pixels square around the subject: of varied place, size, slant and light; half of them mirrored.

    `shift` moves the window to the right by this share of its side, as when the camera was knocked. `fixed`: only the light
    varies much, as before a camera that is screwed on.
    """
    place, slant, (least, most) = (0.005, 0.5, (0.97, 1.0)) if fixed else (0.05, 5, (0.8, 1.15))
    whole = photograph(name)
    x, y, size = SUBJECTS[name]
    side = min(whole.size) * size * random.uniform(least, most)
    across = x * whole.width + side * (random.normal(0, place) + shift)
    down = y * whole.height + side * random.normal(0, place)
    mirrored = random.random() < 0.5
    angle = random.normal(0, slant)
    box = tuple(round(each) for each in (across - side / 2, down - side / 2, across + side / 2, down + side / 2))
    picture = _turned(whole, angle, (across, down), box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if mirrored and not shift and not fixed:
        picture = ImageOps.mirror(picture)
    picture = ImageEnhance.Brightness(picture).enhance(random.uniform(0.85, 1.15))
    return ImageEnhance.Color(picture).enhance(random.uniform(0.8, 1.2))


def _turned(whole: Image.Image, angle: float, center: tuple[float, float], box: tuple[int, ...]) -> Image.Image:
    """The crop of the photograph, turned by so many degrees as `Image.rotate` does; what lies beyond it repeats its border.

    Only what is seen is computed: most of a photograph is not.
    """
    left, top, right, bottom = box
    inside = (max(left, 0), max(top, 0), min(right, whole.width), min(bottom, whole.height))
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = (inside[0] - center[0], inside[1] - center[1])
    rows = (cosine, -sine, x * cosine - y * sine + center[0], sine, cosine, x * sine + y * cosine + center[1])
    size = (inside[2] - inside[0], inside[3] - inside[1])
    pixels = np.asarray(whole.transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR))
    beyond = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0))
    return Image.fromarray(np.pad(pixels, beyond, mode="edge"))


def blur(radius: float) -> Spoil:
    """Out of focus: a Gaussian of this many pixels."""
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def dark(factor: float) -> Spoil:
    """Too little light."""
    return lambda picture: ImageEnhance.Brightness(picture).enhance(factor)


def watermark(share: float) -> Spoil:
    """A logo over this share of the side, in the lower right corner."""

    def drawn(picture: Image.Image) -> Image.Image:
        picture = picture.copy()
        side = round(SIDE * share)
        draw = ImageDraw.Draw(picture)
        left = SIDE - side - 8
        draw.rectangle((left, left, SIDE - 8, SIDE - 8), fill=(250, 250, 250))
        for ring in range(3):
            inset = side * (0.1 + 0.13 * ring)
            colour = (200, 20, 30) if ring % 2 == 0 else (250, 250, 250)
            draw.ellipse((left + inset, left + inset, SIDE - 8 - inset, SIDE - 8 - inset), fill=colour)
        return picture

    return drawn


def encoded(picture: Image.Image, quality: int = 90) -> bytes:
    """As JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def traffic(
    count: int,
    mix: Mapping[str, float],
    seed: int | Sequence[int],
    *,
    spoil: Spoil | None = None,
    shift: float = 0.0,
) -> Iterator[bytes]:
    """`count` pictures, their subjects drawn by the weights of `mix`, spoiled or not; the same for the same seed."""
    random = np.random.default_rng(seed)
    names, weights = list(mix), np.array(list(mix.values()))
    for name in random.choice(names, count, p=weights / weights.sum()):
        picture = crop(str(name), random, shift)
        yield encoded(spoil(picture) if spoil else picture)


SPOILS: Mapping[str, Mapping[str, object]] = {
    "none": {},
    "blur": {"spoil": blur(3)},
    "moved": {"shift": 0.25},
    "watermark": {"spoil": watermark(0.4)},
    "dark": {"spoil": dark(0.3)},
}


def main() -> None:
    """Writes pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=800, help="how many (%(default)s)")
    parser.add_argument("--spoil", choices=SPOILS, default="none", help="what is wrong with them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another number, other crops (%(default)s)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    names = at_hand()
    pictures = traffic(options.count, dict.fromkeys(names, 1.0), options.seed, **SPOILS[options.spoil])  # type: ignore[arg-type]
    for place, picture in enumerate(track(pictures, "cropping", options.count)):
        (options.folder / f"{place:04}.jpg").write_bytes(picture)
    lacking = f"; {' and '.join(FURTHER)} would come with scikit-learn" if len(names) < len(NAMES) else ""
    print(f"{options.count} crops of {len(names)} photographs ({', '.join(names)}) in {options.folder}{lacking}")


if __name__ == "__main__":
    main()
