"""In which memory format a model runs fastest, measured as it is loaded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from camserve.capture.models.eager import cast_input
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layout import extract_logits
from camserve.capture.tuning.prepack import prepack
from camserve.core.errors import ConfigError

logger = logging.getLogger(__name__)

MemoryFormat = Literal["contiguous", "channels_last", "prepacked"]
"""`prepacked`: channels_last, and the convolutions' weights as `prepack` arranges them."""

GAIN = 0.9
"""Channels_last must take at most this share of contiguous' time: less is noise."""

PREPACKED_GAIN = 0.95
"""Prepacked weights must take at most this share of the time of the format without them: they take memory as well."""

EQUAL = 4e-6
"""How far probabilities may move; scores in the tens, as untrained weights make them, round by that much by themselves."""

BUDGET = 0.25
"""Seconds that the passes of one format may take once it ran for the first time."""

UNABLE = (RuntimeError, AttributeError, TypeError)
"""What a model raises that does not run in a format: `view` of a map in channels_last, an operator that this torch lacks."""


@dataclass(frozen=True)
class Trial:
    """How a model did: its scores `[N, classes]`, those of the first picture alone `[1, classes]`, and seconds for all N."""

    scores: Tensor
    lone: Tensor
    seconds: float

    def equals(self, other: Trial) -> bool:
        """Whether both make the same probabilities, but for rounding."""
        pairs = ((self.scores, other.scores), (self.lone, other.lone))
        return all(bool((one.softmax(1) - two.softmax(1)).abs().max() <= EQUAL) for one, two in pairs)


def choose_memory_format(model: nn.Module, pictures: Tensor, wanted: bool | None, packs: bool = False) -> MemoryFormat:
    """Puts the model into channels_last where asked, or, for None, where that is clearly faster and equal but for rounding.

    Args:
        pictures: `[N, 3, H, W]`, N at least 2, to try it on.
        packs: whether its convolutions may be prepacked, which they then are where that is clearly faster than the format
            would be without, and equal; never where contiguous was asked for.

    Raises:
        ConfigError: channels_last was asked for, and the model does not run in it.
    """
    if wanted is False or (wanted is None and not _has_maps(model)):
        return _put(model, "contiguous")
    pictures = cast_input(model, pictures)
    best: MemoryFormat = "channels_last" if wanted else "contiguous"
    plain = None if wanted else run_trial(model, pictures)
    _put(model, "channels_last")
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    try:
        kept = run_trial(model, pictures)
    except UNABLE as error:
        if wanted:
            words = " ".join(str(error).split())[:300]
            raise ConfigError(f"channels_last: true: the model does not run in this memory format: {words}") from error
        return _put(model, "contiguous")
    if plain and kept.equals(plain) and kept.seconds < GAIN * plain.seconds:
        best = "channels_last"
    elif plain:
        kept = plain
    if packs and _prepacked(model, pictures, kept):
        return "prepacked"
    return _put(model, best)


def _prepacked(model: nn.Module, pictures: Tensor, kept: Trial) -> bool:
    """Prepacks the model, which is in channels_last, where that is equal and faster than what would be `kept`."""
    undo = prepack(model, pictures)
    if undo is None:
        return False
    try:
        packed = run_trial(model, pictures)
    except UNABLE as error:
        logger.info("camserve: convolutions run as torch has them, not prepacked: %s", " ".join(str(error).split())[:300])
    else:
        if packed.equals(kept) and packed.seconds < PREPACKED_GAIN * kept.seconds:
            return True
    undo()
    return False


def _put(model: nn.Module, form: MemoryFormat) -> MemoryFormat:
    model.to(memory_format=torch.contiguous_format if form == "contiguous" else torch.channels_last)  # type: ignore[call-overload]
    return form


def _has_maps(model: nn.Module) -> bool:
    """Whether the model has convolutions of more than one cell, which is what the memory format matters to."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def run_trial(model: nn.Module, pictures: Tensor) -> Trial:
    """Runs the model once for each size, in full precision, then as it is served, as many times as `BUDGET` has, up to 5; takes
    the quickest."""
    seconds: list[float] = []
    with torch.no_grad():
        with disable_tf32():
            lone = extract_logits(model(pictures[:1])).float()
            scores = extract_logits(model(pictures)).float()
        while not seconds or (sum(seconds) < BUDGET and len(seconds) < 5):
            start = time.perf_counter()
            extract_logits(model(pictures)).sum().item()
            seconds.append(time.perf_counter() - start)
    return Trial(scores, lone, min(seconds))
