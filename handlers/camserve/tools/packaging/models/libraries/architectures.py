"""Loads an architecture of torchvision's, with published weights, a user's, or random ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camserve.capture.tuning.imports import defer_compiler
from camserve.core.text import find_nearest, join_names
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.checkpoints import StateDict, read_state_dict
from camserve.tools.packaging.models.files import keep_plain
from camserve.tools.packaging.models.libraries.generated import TEMPLATE, name_class
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.models.weights import count_classes, load_into, match_names

defer_compiler()
import torchvision  # noqa: E402

from camserve.tools.packaging.models.libraries.vit import find_image_size, find_weights_of_size  # noqa: E402


def load_architecture(
    arch: str, workdir: Path, weights: Path | None, random: bool, *, progress: bool = False, weights_key: str | None = None
) -> ModelSource:
    """Builds an architecture of torchvision's, with a file's weights, random ones, or the published default ones (downloaded).

    Preprocessing and labels are those of the default weights' metadata; labels only where the number of classes matches. A
    vision transformer is built for the pictures that its weights are for, and prepared as torchvision's weights of that size.

    Args:
        workdir: where the file that builds the model is written.
        progress: show a bar while weights are downloaded.
        weights_key: which entry of a checkpoint is used.

    Raises:
        ToolError: no such architecture, weights that do not fit it, or a download that failed.
    """
    published = _find_published(arch)
    categories = published.meta["categories"]
    state, notes = read_state_dict(weights, weights_key) if weights is not None else (None, [])
    if state is not None:
        state, renamed = match_names(state, _build_default(arch, _auxiliary(arch, state)))
        notes += renamed
    side = find_image_size(arch, published, state)
    options = _choose_options(arch, state, side, len(categories))
    model_file = workdir / f"torchvision_{arch}.py"
    model_file.write_text(TEMPLATE.format(arch=arch, name=name_class(arch), options=_as_arguments(options)))
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None, **options)
    if state is not None:
        notes += load_into(model, state, f"torchvision's {arch}")
    elif not random:
        model.load_state_dict(_download(arch, published, progress))
    labels = categories if options.get("num_classes", len(categories)) == len(categories) else None
    preprocessing, stored = _preprocessing(published), keep_plain(weights, notes)
    if side is not None and side != published.meta["min_size"][0]:
        preprocessing, how = _preprocessing_at(published, preprocessing, side)
        notes = [*notes, f"These weights are for pictures of {side}x{side}: {how}; --resize, --crop, ... say otherwise"]
    return ModelSource(model_file, model.eval(), preprocessing, labels, stored, (), True, tuple(notes))


def _find_published(arch: str) -> Any:
    """The default ones of the weights that torchvision publishes for an architecture."""
    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        near = find_nearest(arch, names)
        hint = f"the nearest are {join_names(near)}" if near else f"there are {join_names(names)}"
        raise ToolError(f"torchvision has no classifier {arch}; {hint}")
    return torchvision.models.get_model_weights(arch).DEFAULT


def _choose_options(arch: str, state: StateDict | None, side: int | None, classes: int) -> dict[str, Any]:
    """The builder's options that fit the weights: sides of pictures, auxiliary classifiers, and the number of classes.

    `state`: a file's weights; None: the published ones, for `classes` classes.
    """
    options: dict[str, Any] = {} if side is None else {"image_size": side}
    if state is None:
        options |= _auxiliary(arch, ())
        return {**options, "aux_logits": False} if arch == "googlenet" else options
    options |= _auxiliary(arch, state)
    outputs = count_classes(state, _build_default(arch, options), classes)
    return options if outputs == classes else {**options, "num_classes": outputs}


def _auxiliary(arch: str, state: Collection[str]) -> dict[str, Any]:
    """Options of architectures with auxiliary classifiers, as their builders set them for published weights."""
    if arch not in ("googlenet", "inception_v3"):
        return {}
    options: dict[str, Any] = {"transform_input": True, "init_weights": False}
    if state:
        options["aux_logits"] = any(part.lower().startswith("aux") for name in state for part in name.split("."))
    return options


def _build_default(arch: str, options: Mapping[str, Any]) -> StateDict:
    """The architecture's own state dict, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return torchvision.models.get_model(arch, weights=None, **options).state_dict()  # type: ignore[no-any-return]
    except NotImplementedError:  # RegNet computes its widths with tensors
        return torchvision.models.get_model(arch, weights=None, **options).state_dict()  # type: ignore[no-any-return]


def _as_arguments(options: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in options.items())


def _download(arch: str, published: Any, progress: bool) -> StateDict:
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
    alike = find_weights_of_size(published, side)
    if alike is not None:
        return _preprocessing(alike), f"they are prepared as for torchvision's {alike.name}"
    resize = round(side * default["resize"] / default["crop"])
    return {**default, "resize": resize, "crop": side}, f"they are resized to {resize} and cropped to {side}"


def _side(size: Sequence[int]) -> int | list[int]:
    return size[0] if len(size) == 1 else list(size)
