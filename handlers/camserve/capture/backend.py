"""From a loaded model to a capture: its layers, memory format, precision, and where the head has a closed form."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.base import Capture
from camserve.capture.eager import Eager, freeze
from camserve.capture.layout import logits_of, synthetic_picture
from camserve.capture.pooled import pooled_head
from camserve.capture.survey import Survey, default_layer, survey
from camserve.config import Config
from camserve.errors import ConfigError


@dataclass(frozen=True)
class Backend:
    """A model that is ready to be explained.

    `layers`: those that may be asked for, the default first. `why`: why the default was picked, "" where it was given.
    `closed_form`: the layers whose gradients need no backward pass. `channels_last`: the memory format in use.
    """

    capture: Capture
    layers: tuple[str, ...]
    outputs: int
    why: str
    closed_form: tuple[str, ...]
    channels_last: bool


def open_backend(model: nn.Module, config: Config, size: tuple[int, int], device: torch.device) -> Backend:
    """Prepares an eager model, which may be compiled, for pictures of `size` = (height, width).

    Freezes the model's parameters, and may change its memory format.

    Raises:
        ConfigError: a layer does not exist or has no map, or none is given and none is found.
    """
    eager: nn.Module = getattr(model, "_orig_mod", model)
    freeze(eager)
    pictures = synthetic_picture(size).to(device)
    found = _surveyed(eager, pictures)
    layers, why = config.layers, ""
    if not layers:
        layer, why = default_layer(eager, pictures, found)
        layers = (layer,)
    sites = {layer: found.site(layer) for layer in layers}
    heads = {layer: pooled_head(eager, site, pictures, found.outputs) for layer, site in sites.items()}
    known_heads = {layer: head for layer, head in heads.items() if head is not None}
    channels_last = _choose_memory_format(eager, pictures, config.channels_last)
    capture = Eager(eager, sites, known_heads, model, precision_context(config.precision, device))
    return Backend(capture, layers, found.outputs, why, tuple(known_heads), channels_last)


def _surveyed(model: nn.Module, pictures: Tensor) -> Survey:
    try:
        return survey(model, pictures)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = list(pictures.shape)
        raise ConfigError(f"the model does not run on pictures of shape {shape}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def precision_context(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which the model runs: autocast for half precision, nothing for float32."""
    if precision == "float32":
        return nullcontext
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype)


def _choose_memory_format(model: nn.Module, pictures: Tensor, wanted: bool | None) -> bool:
    """Puts the model into channels_last where asked, or, for None, where it is at least 5 % faster and equal within 1e-5."""
    if wanted is False:
        return False
    if wanted is None:
        plain, plain_seconds = _timed(model, pictures.repeat(4, 1, 1, 1))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if wanted:
        return True
    other, other_seconds = _timed(model, pictures.repeat(4, 1, 1, 1).contiguous(memory_format=torch.channels_last))
    close = bool((plain.softmax(1) - other.softmax(1)).abs().max() <= 1e-6)
    if close and other_seconds < 0.95 * plain_seconds:
        return True
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return False


def _timed(model: nn.Module, pictures: Tensor, rounds: int = 3) -> tuple[Tensor, float]:
    """The scores, and the quickest of `rounds` passes in seconds after one to warm up."""
    seconds = []
    with torch.no_grad():
        scores = logits_of(model(pictures)).float()
        for _ in range(rounds):
            start = time.perf_counter()
            logits_of(model(pictures)).sum().item()
            seconds.append(time.perf_counter() - start)
    return scores, min(seconds)
