"""What packaging says of a model besides that it works: how pictures are prepared, what its output means, which size it takes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.export import UnflattenedModule

from camserve.capture.backend import Backend
from camserve.capture.models.kinds import DOES_NOT_RUN, open_model, survey_model
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.capture.survey.layout import OUTPUT_FAULTS, extract_logits, synthesize_pictures
from camserve.core.config import Config, Size
from camserve.core.errors import ConfigError
from camserve.core.text import listed
from camserve.tools.packaging.their_handler import Adopted

PREPARED = ("resize", "crop", "interpolation", "mean", "std")
"""The keys that say what is made of a picture."""

SIDES = (24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 227, 240, 256, 288, 299, 320, 331, 384)
"""Sides of pictures that are tried where a model does not take those it is given."""

PATIENCE = 10.0
"""Seconds that these trials may take."""

EXPECTED = (
    "camserve expects logits: each probability is the softmax of the model's output, and explanations are of that output; take "
    "the {} out of the model"
)
SOFTMAX = "each picture's outputs sum to 1, as behind a softmax, but " + EXPECTED.format("softmax")
SIGMOID = "all outputs lie between 0 and 1, as behind a sigmoid, but " + EXPECTED.format("sigmoid")
SINGLE = (
    "the model has one output, and probabilities are the softmax of a model's outputs, so this one's is always 1; give it one "
    "for each class: for a logit z, torch.cat([torch.zeros_like(z), z], 1)"
)


def of_layers(backend: Backend) -> str:
    """Which layer is explained, and why."""
    if backend.why:
        return f"Layer {backend.layers[0]}: {backend.why}; --layer chooses another"
    return f"Layer {', '.join(backend.layers)}, as asked"


def of_pictures(config: Config, origins: Mapping[str, Collection[str]], handler: Adopted) -> list[str]:
    """How a picture is prepared, with warnings of what is odd.

    `origins`: which keys come from where, the last to have one; the rest are defaults. `handler`: may have its own way.
    """
    if handler.prepares:
        size = f", {_sides(handler.size)}" if handler.size else ""
        return [f"Pictures: as {handler.prepares} of {handler.title} makes them{size}"]
    known = {key: origin for origin, keys in origins.items() for key in keys}
    told = {
        "resize": _resized(config.resize),
        "crop": "no crop" if config.crop is None else f"centre {_sides(config.crop)}",
        "interpolation": config.interpolation,
        "mean": f"mean {_channels(config.mean)}",
        "std": f"std {_channels(config.std)}",
    }
    groups = groupby(PREPARED, lambda key: known.get(key, "defaults"))
    line = "; ".join(f"{', '.join(told[key] for key in keys)} ({origin})" for origin, keys in groups)
    return [f"Pictures: {line}", *(f"Warning: {text}" for text in (*_of_crop(config), *_of_std(config)))]


def _resized(resize: Size) -> str:
    if resize is None:
        return "as large as they come"
    return f"resized to {_sides(resize)}" if isinstance(resize, tuple) else f"shorter side to {resize}"


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


def _of_crop(config: Config) -> Iterator[str]:
    if config.resize is None or config.crop is None:
        return
    whole, kept = _pair(config.resize), _pair(config.crop)
    shares = [part / side for part, side in zip(kept, whole, strict=True)]
    if max(shares) > 1:
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


def _of_std(config: Config) -> Iterator[str]:
    if max(config.std) > 1:
        yield f"std {_channels(config.std)} divides values from 0 to 1; if it is meant for 0 to 255, divide it by 255"


def of_outputs(model: object, backend: Backend, size: tuple[int, int]) -> list[str]:
    """A warning where the model's output is none of logits; it is run on a few made-up pictures of `size` = (height, width)."""
    if backend.outputs == 1:
        return [f"Warning: {SINGLE}"]
    soft = synthesize_pictures(size)
    noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for pictures in (soft, noise, 10 * soft, 10 * noise):
        try:
            found.append(backend.capture.forward(pictures, ()).logits)
        except Exception:  # noqa: BLE001 it may refuse what is no picture; this is but advice
            return []
        if not _like_probabilities(found[-1]):
            return []
    scores = torch.cat(found)
    if bool((scores.sum(1) - 1).abs().max() < 1e-2):  # half precision sums that well
        return [f"Warning: {SOFTMAX}"]
    return [f"Warning: {SIGMOID}"] if _changes(scores) and _bounded(model, backend.layers[0], soft) else []


def _like_probabilities(scores: Tensor) -> bool:
    return bool(scores.min() >= 0) and bool(scores.max() <= 1)


def _changes(scores: Tensor) -> bool:
    """Whether there is more to them than a head of zeros: an untrained transformer's."""
    return bool(scores.std(0).max() > 1e-6)


def _bounded(model: object, layer: str, pictures: Tensor) -> bool:
    """Whether the scores stay between 0 and 1 whatever the layer gives: those of two classes may lie there by chance."""
    try:
        own = open_model(model, pictures)
        site = survey_model(own, pictures).site(layer)
        fed = fit_batch(pictures, own.batch)
        generator = torch.Generator().manual_seed(2)
        shape = site.layout.shape(len(fed))
        found = [own.run_with(site, fed, scale * torch.randn(shape, generator=generator)) for scale in (1, 1, 100, 100, 1e4)]
    except MODEL_ERRORS:
        return False
    return _like_probabilities(torch.cat(found))


@contextmanager
def about_size(model: object, size: tuple[int, int], *, own: bool = False) -> Iterator[None]:
    """Within the block, an error that says that the model does not run also says on which pictures it does, if that is found.

    `size`: the (height, width) that it was given; `own`: a handler's own code made them.
    """
    try:
        yield
    except ConfigError as error:
        told = str(error)
        of_size = told.startswith(DOES_NOT_RUN) and not any(words in told for words in OUTPUT_FAULTS)
        fitting_sizes = _fitting_sizes(model, size) if of_size else []
        if not fitting_sizes:
            raise
        found = listed(_sides(each) for each in fitting_sizes)
        flag = _flag(fitting_sizes[0])
        remedy = "the handler's own code must make those" if own else f"add --resize {flag} --crop {flag}"
        raise ConfigError(f"{error}; this model takes pictures of {found}: {remedy}") from error


def _fitting_sizes(model: object, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The (height, width) that the model takes, where it is not `size` and there is hardly another."""
    if isinstance(model, UnflattenedModule):
        placeholder: Any = model.input_placeholders[0]
        shape = tuple(placeholder.meta["val"].shape[2:])
        if all(isinstance(side, int) for side in shape):
            return [shape] if shape != size and len(shape) == 2 else []
    fits: list[tuple[int, int]] = []
    until = time.monotonic() + PATIENCE
    for side in SIDES:
        if (side, side) != size and _runs(model, (side, side)):
            fits.append((side, side))
        if len(fits) > 2 or time.monotonic() > until:  # more are no fixed size, and the fault is another
            return []
    return fits


def _runs(model: Any, size: tuple[int, int]) -> bool:
    """Whether one picture of this size, or two, get scores."""
    for count in (1, 2):
        with suppress(Exception), torch.no_grad():  # the model's own code may raise anything
            extract_logits(model(synthesize_pictures(size, count)), count)
            return True
    return False
