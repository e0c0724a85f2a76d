"""From a loaded model to a capture: its layers, memory format, precision, and where the head has a closed form."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture, Context, Setting
from camserve.capture.fold import fold_norms
from camserve.capture.kinds import beginning, looked_at, opened
from camserve.capture.layers import LayerInfo
from camserve.capture.layout import logits_of, synthetic_picture
from camserve.capture.pooled import pooled_head
from camserve.capture.prepack import prepack
from camserve.capture.rule import check, pick
from camserve.config import Config
from camserve.errors import ConfigError


@dataclass(frozen=True)
class Backend:
    """A model that is ready to be explained.

    `layers`: those that may be asked for, the default first. `why`: why the default was picked, "" where it was given.
    `closed_form`: the layers whose gradients need no backward pass. `channels_last`: the memory format in use. `kind`: `eager`,
    `torchscript` or `exported`. `compiled`: predictions run compiled, explanations do not. `maps`: all layers with a map.
    `prepacked`: the convolutions' weights lie as oneDNN computes with them.
    """

    capture: Capture
    layers: tuple[str, ...]
    outputs: int
    why: str
    closed_form: tuple[str, ...]
    channels_last: bool
    kind: str = "eager"
    compiled: bool = False
    maps: tuple[LayerInfo, ...] = ()
    prepacked: bool = False


def open_backend(model: object, config: Config, size: tuple[int, int], device: torch.device, *, tune: bool = False) -> Backend:
    """Prepares a model for pictures of `size` = (height, width).

    The model is an eager module, a TorchScript module, an exported program or its restored module (`load_exported`), and may
    be compiled: then predictions run compiled, and explanations run what was compiled.

    Freezes the model's parameters, and may change an eager model's memory format. With `tune` it also changes its weights
    (`fold_norms`) and how its convolutions run (`prepack`): who goes on to save it must not ask for that.

    Raises:
        ConfigError: it does not run on such pictures; a layer does not exist, has no map or decides nothing; or none is given
            and none is found.
    """
    pictures = synthetic_picture(size).to(device)
    own = opened(model, pictures)
    found = looked_at(own, pictures, config.token_grid)
    layers, why = config.layers, ""
    if not layers:
        layer, why = pick(own, pictures, found)
        layers = (layer,)
    for layer in config.layers:
        check(own, pictures, found, layer)
    sites = {layer: found.site(layer) for layer in layers}
    heads = {layer: pooled_head(own, site, pictures, found.outputs) for layer, site in sites.items()}
    known = {layer: head for layer, head in heads.items() if head is not None}
    eager: Any = getattr(model, "_orig_mod", model)
    if tune and own.kind == "eager":
        fold_norms(eager, pictures, layers)
    compiled = eager is not model
    packs = tune and not compiled and config.precision == "float32"
    form = choose_memory_format(eager, pictures, config.channels_last, packs) if own.kind == "eager" else "contiguous"
    channels_last = form != "contiguous"
    context = precision_context(config.precision, device)
    setting = Setting(known, size, model if compiled else None, context)  # type: ignore[arg-type]
    capture = own.capture(sites, setting)
    if compiled:
        _compile_now(capture, pictures, channels_last)
    prepacked = form == "prepacked"
    return Backend(capture, layers, found.outputs, why, tuple(known), channels_last, own.kind, compiled, found.maps, prepacked)


def _compile_now(capture: Capture, pictures: Tensor, channels_last: bool) -> None:
    """Runs the compiled model once: it is compiled when it first runs, and may fail then.

    Raises:
        ConfigError: it fails.
    """
    try:
        capture.forward(_formatted(pictures, channels_last), ())
    except Exception as error:
        raise ConfigError(f"pt2: the compiled model does not run: {type(error).__name__}: {beginning(error)}") from error


def precision_context(precision: str, device: torch.device) -> Context:
    """Makes the context in which the model runs: autocast for half precision, nothing for float32."""
    if precision == "float32":
        return nullcontext
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype)


MemoryFormat = Literal["contiguous", "channels_last", "prepacked"]
"""`prepacked`: channels_last, and the convolutions' weights as `prepack` arranges them."""

GAIN = 0.9
"""Channels_last must take at most this share of the time: less is noise."""

EQUAL = 4e-6
"""How far probabilities may move; scores in the tens, as untrained weights make them, round by that much by themselves."""

BUDGET = 0.75
"""Seconds that the choice may take once all formats ran for the first time."""


def choose_memory_format(model: nn.Module, pictures: Tensor, wanted: bool | None, packs: bool = False) -> MemoryFormat:
    """Puts the model into channels_last where asked, or, for None, where it is clearly faster and equal but for rounding.

    Args:
        packs: whether its convolutions may be prepacked, which they then are where that is faster than the rest, and equal;
            never where contiguous was asked for.
    """
    if wanted is False or (wanted is None and not _has_maps(model)):
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return "contiguous"
    seconds, scores = float("inf"), None
    if wanted is None:
        scores, seconds = _timed(model, pictures, BUDGET / 3)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = _formatted(pictures, channels_last=True)
    other, other_seconds = _timed(model, pictures, BUDGET / 3)
    scores = other if scores is None else scores
    undo = prepack(model, pictures) if packs else None
    if undo:
        packed, packed_seconds = _timed(model, pictures, BUDGET / 3)
        if _equal(scores, packed) and packed_seconds < min(seconds, other_seconds):
            return "prepacked"
        undo()
    if wanted or (_equal(scores, other) and other_seconds < GAIN * seconds):
        return "channels_last"
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return "contiguous"


def _has_maps(model: nn.Module) -> bool:
    """Whether the model has convolutions of more than one cell, which is what the memory format matters to."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two scores make the same probabilities, but for rounding."""
    return bool((one.softmax(1) - other.softmax(1)).abs().max() <= EQUAL)


def _formatted(pictures: Tensor, channels_last: bool) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _timed(model: nn.Module, pictures: Tensor, budget: float) -> tuple[Tensor, float]:
    """The scores, and the quickest of some passes in seconds, after one to warm up: as many as the budget has, up to 5."""
    pictures = pictures.to(next(model.parameters()).dtype)
    seconds: list[float] = []
    with torch.no_grad():
        scores = logits_of(model(pictures)).float()
        while not seconds or (sum(seconds) < budget and len(seconds) < 5):
            start = time.perf_counter()
            logits_of(model(pictures)).sum().item()
            seconds.append(time.perf_counter() - start)
    return scores, min(seconds)
