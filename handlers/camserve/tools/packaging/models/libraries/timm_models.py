"""Loads an architecture of timm's, with published weights, a user's, or random ones."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camserve.core.errors import require
from camserve.core.text import find_nearest, in_one_line, join_names
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.advice import SIDES
from camserve.tools.packaging.models.checkpoints import StateDict, read_state_dict
from camserve.tools.packaging.models.libraries.preparation import Geometry, Preparation, match_preparation
from camserve.tools.packaging.models.source import ModelSource
from camserve.tools.packaging.models.weights import count_classes, load_into, match_names

TEMPLATE = '''\
"""timm's {name}, without weights; TorchServe then loads the archive's into it."""

import timm


class Model:
    """The architecture."""

    def __new__(cls):
        """The module."""
        return timm.create_model({name!r}, **{options!r})
'''


@dataclass(frozen=True)
class TimmWeights:
    """Where an architecture's weights come from.

    Attributes:
        file: a state dict or a checkpoint; None: none of the user's.
        key: which entry of it.
        random: none at all, for a trial.
    """

    file: Path | None = None
    key: str | None = None
    random: bool = False


def load_timm(name: str, workdir: Path, weights: TimmWeights, arguments: Mapping[str, Any]) -> ModelSource:
    """Builds an architecture of timm's, with a file's weights, random ones, or the published ones of its tag (downloaded).

    The number of classes, and of a transformer the size of its pictures, are those of the weights. Preprocessing is that of
    the architecture's `pretrained_cfg`, tried against timm's own transforms; labels are ImageNet's where it has its classes.

    Args:
        name: an architecture, with a tag or without.
        workdir: where the file that builds the model is written.
        arguments: further ones of `timm.create_model`.

    Raises:
        ToolError: no such architecture, weights that do not fit it, or a download that failed.
    """
    require("--timm", "timm", "timm")
    notes: list[str] = []
    options = dict(arguments)
    default = _create(name, options, meta=True)
    state: StateDict | None = None
    if weights.file is not None:
        state, notes = read_state_dict(weights.file, weights.key)
        state, renamed = match_names(state, default.state_dict())
        notes += renamed
        options = _choose_options(name, options, default, state)
    torch.manual_seed(0)
    model = _create(name, options, pretrained=weights.file is None and not weights.random)
    if state is not None:
        notes += load_into(model, state, f"timm's {name}")
    model_file = workdir / f"timm_{name.replace('.', '_').replace('-', '_')}.py"
    model_file.write_text(TEMPLATE.format(name=name, options=options), "utf-8")
    prepared = prepare_as_timm(model, f"timm's transform of {name}")
    return ModelSource(
        model_file,
        model.eval(),
        prepared.keys,
        find_timm_labels(model),
        None if notes else weights.file,
        notes=(*notes, *([prepared.note] if prepared.note else [])),
        requires=("timm",),
        unprepared=prepared.fault,
    )


def _import(name: str) -> Any:
    """The library, or a module of it: an extra, partly untyped, which takes seconds to load."""
    return importlib.import_module(name)


def _create(name: str, options: Mapping[str, Any], *, meta: bool = False, pretrained: bool = False) -> Any:
    """Builds the architecture, without data where it can be built so."""
    timm = _import("timm")
    if not timm.is_model(name.partition(".")[0]):
        near = find_nearest(name.partition(".")[0], timm.list_models())
        raise ToolError(
            f"timm {timm.__version__} has no architecture {name}; "
            + (f"the nearest are {join_names(near)}" if near else "python -c 'import timm; print(timm.list_models())' lists them")
        )
    try:
        if meta:
            try:
                with torch.device("meta"):
                    return timm.create_model(name, pretrained=False, **options)
            except (NotImplementedError, RuntimeError):  # some compute their sizes with tensors
                pass
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if pretrained:
            raise ToolError(
                f"timm's published weights of {name} could not be loaded ({in_one_line(error)[:200]}); give a file of them with "
                "--weights FILE, or, for a trial, --random-weights"
            ) from error
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        hint = f"; its tags are {join_names(tags)}" if "tag" in str(error) and tags else ""
        raise ToolError(f"timm does not build {name} with {dict(options)}: {in_one_line(error)}{hint}") from error


def _choose_options(name: str, options: dict[str, Any], default: nn.Module, state: StateDict) -> dict[str, Any]:
    """The arguments that fit a file's weights: the number of classes, and the size of a transformer's pictures."""
    classes = int(getattr(default, "num_classes", 0))
    if "num_classes" not in options and classes:
        outputs = count_classes(state, default.state_dict(), classes)
        options = options if outputs == classes else {**options, "num_classes": outputs}
    if "num_classes" in options:
        default = _create(name, options, meta=True)
    if "img_size" in options or _fits(default, state):
        return options
    for side in SIDES:
        try:
            if _fits(_create(name, {**options, "img_size": side}, meta=True), state):
                return {**options, "img_size": side}
        except ToolError:  # of no architecture with a size
            break
    return options


def _fits(model: nn.Module, state: StateDict) -> bool:
    own = model.state_dict()
    return all(own[name].shape == tensor.shape for name, tensor in state.items() if name in own)


def prepare_as_timm(model: nn.Module, title: str) -> Preparation:
    """Finds the keys that prepare pictures as timm's transform for a model's own `pretrained_cfg` does."""
    data_of = _import("timm.data")
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    own = {"input_size": (3, *size)} if isinstance(size, tuple) and len(size) == 2 else {}
    data = data_of.resolve_data_config(own, model=model)
    if data["input_size"][0] != 3 or getattr(model, "in_chans", 3) != 3:
        return Preparation(fault=f"{title} is for RGB pictures, and the model takes others")
    return match_timm_data(data, data_of.create_transform(**data, is_training=False), title)


def match_timm_data(data: Mapping[str, Any], transform: Any, title: str) -> Preparation:
    """The same for timm's own description of the data."""
    height, width = data["input_size"][1:]
    whole = [math.floor(side / (data["crop_pct"] or 0.875)) for side in (height, width)]
    crop: int | list[int] = height if height == width else [height, width]
    whole_side: int | list[int] = whole[0] if height == width else whole
    modes: Mapping[str, list[Geometry]] = {
        "squash": [{"resize": whole, "crop": crop}],
        "border": [{"resize": whole, "crop": crop, "fit": "pad", "fill": list(data["mean"])}],
    }
    geometries = modes.get(data["crop_mode"], [{"resize": whole_side, "crop": crop}])
    chosen = data["interpolation"] if data["interpolation"] != "random" else "bilinear"
    return match_preparation(transform, geometries, title, interpolation=chosen, declared=(data["mean"], data["std"]))


def find_timm_labels(model: nn.Module) -> list[str] | None:
    """The names that a model's own configuration gives its classes, or those of the ImageNet set of as many classes."""
    data_of = _import("timm.data")
    described: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classes = getattr(model, "num_classes", None)
    names = described.get("label_names")
    if names and len(names) == classes:
        return [str(each) for each in names]
    if classes != described.get("num_classes"):
        return None
    subset = data_of.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = data_of.ImageNetInfo(subset)
    return [str(info.index_to_description(index)) for index in range(info.num_classes())]
