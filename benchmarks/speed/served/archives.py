"""Archives to compare: ours, and the stock handler's of the same weights and preprocessing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from camserve.tools.commands import package

ROOT = Path(__file__).resolve().parents[3]
DEMO = "efficientnet_lite0"
MODELS = ("resnet18", "resnet50", DEMO, "efficientnet_b0", "mobilenet_v3_large", "convnext_tiny", "vit_b_16")

STOCK = '''
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class Stock(ImageClassifier):
    """The stock handler with the archive's preprocessing."""

    image_processing = transforms.Compose([
        transforms.Resize({resize}, transforms.InterpolationMode("{interpolation}")), transforms.CenterCrop({crop}),
        transforms.ToTensor(), transforms.Normalize({mean}, {std}),
    ])
'''


def ours(store: Path, model: str, name: str | None = None, *flags: str) -> str:
    """Packages the model as `name`, with the tool's defaults but for `flags`, where `store` has none yet; returns the name."""
    source = ["--demo"] if model == DEMO else ["--torchvision", model, "--random-weights"]
    name = name or model
    if (store / f"{name}.mar").is_file():
        return name
    if package.main([*source, "--name", name, "--export-path", str(store), *flags]):
        raise SystemExit(f"{model} could not be packaged")
    return name


def stock(store: Path, model: str) -> str:
    """The archive `model` of `store` for the stock handler instead: same weights, labels and preprocessing, nothing of ours.

    Where the preprocessing is the stock handler's own, the handler is `image_classifier` itself.
    """
    name = f"{model}_stock"

    def settings(given: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in given.items() if key != "explain"}

    _rewritten(store, model, name, settings, stock_handler=True)
    return name


def variant(store: Path, model: str, name: str, **changed: Any) -> str:
    """The archive `model` again under another name, with other settings of TorchServe's (`batchSize=1`)."""
    _rewritten(store, model, name, lambda given: {**given, **changed})
    return name


def in_runtime(store: Path, model: str, runtime: str) -> str:
    """The archive `model` again, to be run in another runtime: the graph that it holds is for all that read one."""
    name = f"{model}_{runtime}"
    _rewritten(store, model, name, lambda given: {**given, "explain": {**given["explain"], "runtime": runtime}})
    return name


def _rewritten(
    store: Path, model: str, name: str, settings: Callable[[dict[str, Any]], dict[str, Any]], stock_handler: bool = False
) -> None:
    target = store / f"{name}.mar"
    with zipfile.ZipFile(store / f"{model}.mar") as old, zipfile.ZipFile(target, "w") as new:
        config = yaml.safe_load(old.read("model-config.yaml"))
        manifest = json.loads(old.read("MAR-INF/MANIFEST.json"))
        manifest["model"]["modelName"] = name
        source = _stock_source(config["explain"]) if stock_handler else None
        if stock_handler:
            manifest["model"]["handler"] = "stock_handler.py" if source else "image_classifier"
        if source:
            new.writestr("stock_handler.py", source)
        for entry in old.namelist():
            if entry == "model-config.yaml":
                new.writestr(entry, yaml.safe_dump(settings(config)))
            elif entry == "MAR-INF/MANIFEST.json":
                new.writestr(entry, json.dumps(manifest))
            elif not (stock_handler and entry.startswith(("camserve", "gradcam_handler"))):
                new.writestr(entry, old.read(entry))


def _stock_source(explain: Mapping[str, Any]) -> str | None:
    """A subclass with the archive's preprocessing; None where it is the stock handler's own."""
    usual: dict[str, Any] = {"resize": 256, "crop": 224, "interpolation": "bilinear"}
    usual |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    values = {key: explain.get(key, value) for key, value in usual.items()}
    return None if values == usual else STOCK.format(**values)


def photograph(folder: Path, width: int = 640, height: int = 480) -> Path:
    """A photograph of that size as JPEG, quality 90."""
    path = folder / f"photograph-{width}x{height}.jpg"
    with Image.open(ROOT / "examples" / "coffee.jpg") as picture:
        picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(path, quality=90)
    return path
