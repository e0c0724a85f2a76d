"""Advice on a model: how its pictures are prepared, what is odd about its outputs, and which size it takes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any

import torch
from torch.export import UnflattenedModule

from camserve.capture.backend import Backend
from camserve.capture.choose.bypass import MAX_BYPASS
from camserve.capture.models.kinds import DOES_NOT_RUN
from camserve.capture.models.programs.graphs.module import GraphModule
from camserve.capture.survey.layout import synthesize_pictures
from camserve.capture.survey.outputs import OUTPUT_FAULTS, read_scores
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.core.geometry import frame, input_size
from camserve.core.text import join_names
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler

PREPARED = ("resize", "fit", "crop", "fill", "interpolation", "scale", "mean", "std")
"""The keys that say how a picture is prepared."""

SIDES = (24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 227, 240, 256, 288, 299, 320, 331, 384)
"""Sides, in pixels, of the pictures that are tried where a model does not take those it is given."""

PROBE = 256, 256
"""The picture, (width, height), of which the size of the model's input is told."""

PATIENCE = 10.0
"""Seconds that these trials may take."""


def describe_layers(backend: Backend) -> list[str]:
    """Says which layer is explained, why, where its cells lie, where that is worth a word, and what its maps cannot show."""
    cells = "".join(f"; of {layer}, {each.note}" for layer, each in backend.aligned.items() if each.note and each.told)
    cells += "".join(
        f"; the tokens beside the cells of {layer} carry {min(share, 1):.0%} of what changes the scores past it, shown by no map"
        for layer, share in backend.beside.items()
        if share > MAX_BYPASS
    )
    if backend.why:
        untold = [f"Warning: layer {layer}: {each.note}" for layer, each in backend.aligned.items() if not each.told]
        return [f"Layer {backend.layers[0]}: {backend.why}; --layer chooses another{cells}", *untold]
    warnings = [f"Warning: layer {layer}: {doubt}; without --layer the rule chooses" for layer, doubt in backend.doubts.items()]
    return [f"Layer {', '.join(backend.layers)}, as asked{cells}", *warnings]


def describe_preparation(config: Config, origins: Mapping[str, Collection[str]], handler: AdoptedHandler) -> list[str]:
    """Says how a picture is prepared, and warns of what is odd.

    Args:
        origins: which keys come from where; of two that have a key the last counts, and the rest are defaults.
        handler: may prepare pictures in its own way.
    """
    if handler.prepares:
        size = f", {_sides(handler.size)}" if handler.size else ""
        return [f"Pictures: as {handler.prepares} of {handler.title} makes them{size}"]
    if not config.takes_pictures:
        size = _sides(input_size(*PROBE, config.resize, config.crop, config.fit))
        return [f"Pictures: none; tensors [{config.channels}][H][W], as JSON or as .npy files, tried with {size}"]
    known = {key: origin for origin, keys in origins.items() for key in keys}
    words = {
        "resize": ("grey, " if config.channels == 1 else "") + _describe_resize(config),
        "crop": _describe_crop(config),
        "interpolation": config.interpolation,
        "mean": f"mean {_channels(config.mean)}",
        "std": f"std {_channels(config.std)}",
    }
    words |= {"scale": f"times {config.scale:g}"} if config.scale != 1 else {}
    words |= {"fill": f"filled with {_channels(config.fill)}"} if any(config.fill) else {}
    groups = groupby((key for key in PREPARED if key in words), lambda key: known.get(key, "defaults"))
    line = "; ".join(f"{', '.join(words[key] for key in keys)} ({origin})" for origin, keys in groups)
    return [f"Pictures: {line}", *(f"Warning: {text}" for text in (*_warn_of_crop(config), *_warn_of_std(config)))]


def _describe_resize(config: Config) -> str:
    resize = config.resize
    if resize is None:
        return "as large as they come"
    if config.fit == "pad":
        return f"longer side to {resize}" if isinstance(resize, int) else f"resized into {_sides(resize)}"
    if config.fit == "squash" or isinstance(resize, tuple):
        return f"resized to {_sides(resize)}"
    return f"shorter side to {resize}"


def _describe_crop(config: Config) -> str:
    whole = frame(config.resize, config.crop, config.fit)
    if whole is None:
        return "no crop"
    return f"padded to {_sides(whole)}" if config.fit == "pad" else f"centre {_sides(whole)}"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _sides(size: int | tuple[int, int]) -> str:
    height, width = _pair(size)
    return f"{height}x{width}"


def _flag(size: tuple[int, int]) -> str:
    """Sides as a flag takes them."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"


def _channels(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _warn_of_crop(config: Config) -> Iterator[str]:
    if config.resize is None or config.crop is None:
        return
    whole, kept = _pair(config.resize), _pair(config.crop)
    shares = [part / side for part, side in zip(kept, whole, strict=True)]
    if max(shares) > 1 and config.fit != "pad":
        yield (
            f"the crop of {_sides(kept)} is larger than pictures of {_sides(whole)}, around which it puts black; "
            f"--resize {_flag(kept)} or --crop {_flag(whole)} leaves none"
        )
    elif min(shares) < 0.5:
        share = round(1 / (shares[0] * shares[1]))
        yield (
            f"the crop keeps {_sides(kept)} of pictures of {_sides(whole)}, 1/{share} of what is there; "
            f"--resize {_flag(kept)} shows the model all of it"
        )


def _warn_of_std(config: Config) -> Iterator[str]:
    if max(config.std) > 1 and config.scale == 1:
        yield f"std {_channels(config.std)} divides values from 0 to 1; if it is meant for 0 to 255, divide it by 255"


@contextmanager
def suggest_size(model: object, size: tuple[int, int], config: Config | None = None, *, own: bool = False) -> Iterator[None]:
    """Where an error of the block says that the model does not run, adds the size on which it does, if there is one.

    Args:
        size: the (height, width), in pixels, that the model was given.
        own: a handler's own code prepared the pictures.
    """
    try:
        yield
    except ConfigError as error:
        text = str(error)
        of_size = text.startswith(DOES_NOT_RUN) and not any(words in text for words in OUTPUT_FAULTS)
        sizes = find_fitting_sizes(model, size, config) if of_size else []
        if not sizes:
            raise
        sides = join_names(_sides(each) for each in sizes)
        flag = _flag(sizes[0])
        remedy = "the handler's own code must make those" if own else f"add --resize {flag} --crop {flag}"
        raise ConfigError(f"{error}; this model takes pictures of {sides}: {remedy}") from error


def find_fitting_sizes(model: object, size: tuple[int, int], config: Config | None = None) -> list[tuple[int, int]]:
    """Finds the (height, width), in pixels, that the model takes, where it is not `size` and there is hardly another."""
    if isinstance(model, UnflattenedModule):
        placeholder: Any = model.input_placeholders[0]
        shape = tuple(placeholder.meta["val"].shape[2:])
        if all(isinstance(side, int) for side in shape):
            return [shape] if shape != size and len(shape) == 2 else []
    if isinstance(model, GraphModule) and model.size:
        return [model.size] if model.size != size else []
    fits: list[tuple[int, int]] = []
    until = time.monotonic() + PATIENCE
    for side in SIDES:
        if (side, side) != size and _runs(model, (side, side), config):
            fits.append((side, side))
        if len(fits) > 2 or time.monotonic() > until:  # more are no fixed size, and the fault is another
            return []
    return fits


def _runs(model: Any, size: tuple[int, int], config: Config | None) -> bool:
    """True where one picture of this size, or two, get scores."""
    for count in (1, 2):
        with suppress(Exception), torch.no_grad():  # the model's own code may raise anything
            read_scores(model(synthesize_pictures(size, count, config=config)), count)
            return True
    return False
