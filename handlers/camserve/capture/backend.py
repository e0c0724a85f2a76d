"""From a loaded model to a capture: its layers, memory format, precision, and where the head has a closed form."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camserve.capture.base import Capture, CaptureSettings, Context
from camserve.capture.choose.cam_condition import find_cam_weights
from camserve.capture.choose.layer import check_layer, choose_layer
from camserve.capture.models.kinds import open_model, summarize_error, survey_model
from camserve.capture.survey.layers import LayerInfo
from camserve.capture.survey.layout import synthesize_pictures
from camserve.capture.tuning.fold import fold_norms
from camserve.capture.tuning.memory_format import MemoryFormat, choose_memory_format
from camserve.core.config import Config
from camserve.core.errors import ConfigError


@dataclass(frozen=True)
class Backend:
    """A model that is ready to be explained.

    `layers`: those that may be asked for, the default first. `why`: why the default was picked, "" where it was given.
    `closed_form`: the layers whose gradients need no backward pass. `kind`: `eager`, `torchscript` or `exported`.
    `compiled`: predictions run compiled, explanations do not. `maps`: all layers with a map.
    """

    capture: Capture
    layers: tuple[str, ...]
    outputs: int
    why: str
    closed_form: tuple[str, ...]
    memory_format: MemoryFormat
    kind: str = "eager"
    compiled: bool = False
    maps: tuple[LayerInfo, ...] = ()

    @property
    def channels_last(self) -> bool:
        """Whether pictures are to lie in channels_last."""
        return self.memory_format != "contiguous"


def open_backend(model: object, config: Config, size: tuple[int, int], device: torch.device, *, tune: bool = False) -> Backend:
    """Prepares a model for pictures of `size` = (height, width).

    The model is an eager module, a TorchScript module, an exported program or its restored module (`load_exported`), and may
    be compiled: then predictions run compiled, and explanations run what was compiled.

    Freezes the model's parameters, and may change an eager model's memory format. With `tune` it also changes its weights
    (`fold_norms`) and how its convolutions run (`prepack`): who goes on to save, trace or look into it must not ask for that.

    Raises:
        ConfigError: it does not run on such pictures, or not in the memory format that was asked for; a layer does not exist,
            has no map or decides nothing; or none is given and none is found.
    """
    pictures = synthesize_pictures(size).to(device)
    own = open_model(model, pictures)
    found = survey_model(own, pictures, config.token_grid)
    layers, why = config.layers, ""
    if not layers:
        layer, why = choose_layer(own, pictures, found)
        layers = (layer,)
    for layer in config.layers:
        check_layer(own, pictures, found, layer)
    sites = {layer: found.site(layer) for layer in layers}
    heads = {layer: find_cam_weights(own, site, pictures, found.outputs) for layer, site in sites.items()}
    known = {layer: head for layer, head in heads.items() if head is not None}
    eager: Any = getattr(model, "_orig_mod", model)
    if tune and own.kind == "eager":
        fold_norms(eager, pictures, layers)
    compiled = eager is not model
    packs = tune and not compiled and config.precision == "float32"
    form: MemoryFormat = "contiguous"
    if own.kind == "eager":
        form = choose_memory_format(eager, pictures, config.channels_last, packs)
    elif config.channels_last:
        raise ConfigError(f"channels_last: true is for eager models; a model of the kind {own.kind} keeps its own, leave it out")
    context = precision_context(config.precision, device)
    setting = CaptureSettings(known, size, model if compiled else None, context)  # type: ignore[arg-type]
    capture = own.capture(sites, setting)
    if compiled:
        as_given = torch.contiguous_format if form == "contiguous" else torch.channels_last
        _compile_now(capture, pictures.contiguous(memory_format=as_given))
    return Backend(capture, layers, found.outputs, why, tuple(known), form, own.kind, compiled, found.maps)


def _compile_now(capture: Capture, pictures: Tensor) -> None:
    """Runs the compiled model once: it is compiled when it first runs, and may fail then.

    Raises:
        ConfigError: it fails.
    """
    try:
        capture.forward(pictures, ())
    except Exception as error:
        raise ConfigError(f"pt2: the compiled model does not run: {type(error).__name__}: {summarize_error(error)}") from error


def precision_context(precision: str, device: torch.device) -> Context:
    """Makes the context in which the model runs: autocast for half precision, nothing for float32."""
    if precision == "float32":
        return nullcontext
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype)
