"""Small unpacked archives, as TorchServe's worker finds them on disk, and pictures to send them."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from camserve.tools.archive.archive import handler_of
from camserve.tools.packaging.contents.files import copy_package

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"

MODEL = '''
import torch
from torch import nn


class Bright(nn.Module):
    """Eight-pixel cells; class 0 grows with the brightness of its cells, the others with random channels."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(6, CLASSES)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        FAULT
        x = self.features(x)
        return self.fc(x.mean((2, 3)))
'''

HOSTILE = {"0": "</script><script>alert(1)</script>", "1": "<img src=x onerror=alert(2)>", "2": 'line\nbreak \u202e "{{facts}}"'}
"""Labels that attack whoever shows them."""

PLAIN = {"resize": 64, "crop": 64, "mean": [0, 0, 0], "std": [1, 1, 1], "layers": ["features"]}
"""The tests' preprocessing: the shorter side to 64 pixels, the middle square, values in [0, 1]."""


def weights(classes: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Channel 0 is a cell's brightness above a tenth; class 0 reads that channel alone."""
    generator = torch.Generator().manual_seed(seed)
    conv = 0.05 * torch.randn(6, 3, 8, 8, generator=generator)
    bias = 0.1 * torch.randn(6, generator=generator)
    conv[0], bias[0] = 1 / 192, -0.1
    head = torch.randn(classes, 6, generator=generator)
    head[0] = torch.tensor([6.0, 0, 0, 0, 0, 0])
    return {"features.0.weight": conv, "features.0.bias": bias, "fc.weight": head, "fc.bias": torch.zeros(classes)}


def archive(
    directory: Path,
    explain: dict[str, Any] | None = None,
    *,
    classes: int = 3,
    labels: dict[str, Any] | None = None,
    handler: str | None = None,
    fault: str = "",
    state: dict[str, torch.Tensor] | None = None,
    settings: dict[str, Any] | None = None,
    version: str = "1.0",
) -> Path:
    """An unpacked archive of the model above.

    Args:
        explain: the `explain:` section; None: `PLAIN`.
        handler: source of a handler of its own; None: ours. `stock`: TorchServe's `image_classifier`.
        fault: a line at the start of the model's `forward`.
    """
    (directory / "MAR-INF").mkdir(parents=True)
    model = {"modelName": directory.name, "modelVersion": version, "modelFile": "model.py", "serializedFile": "weights.pth"}
    names = {None: "gradcam_handler.py", "stock": "image_classifier"}
    model |= {"handler": names.get(handler, "handler.py"), "configFile": "model-config.yaml"}
    (directory / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))
    source = MODEL.replace("CLASSES", str(classes)).replace("FAULT", fault or "pass")
    (directory / "model.py").write_text(source)
    torch.save(state or weights(classes), directory / "weights.pth")
    config = {"minWorkers": 1, **(settings or {}), "explain": PLAIN if explain is None else explain}
    (directory / "model-config.yaml").write_text(yaml.safe_dump(config))
    if handler is None:
        shutil.copy(HANDLERS / "gradcam_handler.py", directory)
    elif handler != "stock":
        (directory / "handler.py").write_text(handler)
    if labels is not None:
        (directory / "index_to_name.json").write_text(json.dumps(labels))
    return directory


def mar(store: Path, name: str, **options: Any) -> Path:
    """The model above as an archive file (.mar) that carries the package, as packaging makes them; options as `archive`'s."""
    with tempfile.TemporaryDirectory() as folder:
        directory = archive(Path(folder) / name, **options)
        copy_package(directory)
        return Path(shutil.make_archive(str(store / name), "zip", directory)).rename(store / f"{name}.mar")


def encoded(pixels: NDArray[np.uint8] | Image.Image, form: str = "PNG", **options: Any) -> bytearray:
    """A picture file, in the type in which TorchServe hands it over."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return bytearray(buffer.getvalue())


def blank(side: int) -> bytes:
    """A black PNG of one bit a pixel, whose pixels are never drawn."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + b"\x01\0\0\0\0"
    rows = zlib.compress(bytes(1 + (side + 7) // 8) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def noise(width: int = 80, height: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """A random RGB picture `[height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(width: int, height: int, left: int, top: int, side: int) -> NDArray[np.uint8]:
    """A black picture with one white square."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[top : top + side, left : left + side] = 255
    return pixels


def module_of(service: Any) -> nn.Module:
    """The model that a loaded service runs."""
    model: nn.Module = handler_of(service).model
    return model


def pictures_in(folder: Path, black: int | None = None) -> None:
    """Writes 130 pictures of a bright square on noise, half of them into the folder `more`; one may be black."""
    (folder / "more").mkdir()
    for seed in range(130):
        left, top = np.random.default_rng(seed).integers(0, 48, 2)
        pixels = square(80, 64, int(left) + 8, int(top), 16) // 2 + noise(80, 64, seed) // 4
        shown = np.zeros_like(pixels) if seed == black else pixels
        (folder / ("more" if seed % 2 else ".") / f"{seed:03}.png").write_bytes(encoded(shown.astype(np.uint8)))
