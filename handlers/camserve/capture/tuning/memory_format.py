"""Chooses the memory format in which a model runs fastest, by measuring it when the model is loaded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from camserve.capture.precision import cast_input, disable_tf32
from camserve.capture.survey.reader import FIRST, OutputReader
from camserve.capture.tuning.prepack import prepack
from camserve.core.errors import ConfigError

logger = logging.getLogger(__name__)

MemoryFormat = Literal["contiguous", "channels_last", "prepacked"]
"""`prepacked`: channels_last, with the convolutions' weights reordered by `prepack`."""

GAIN = 0.9
"""channels_last must take at most this share of contiguous's time: a smaller gain may be noise."""

PREPACKED_GAIN = 0.95
"""Prepacked weights must take at most this share of the time without them: they also take memory."""

EQUAL = 4e-6
"""Largest change of a probability; scores in the tens, as untrained weights give, round by as much."""

BUDGET = 0.25
"""Seconds that the timed passes of one format may take, after the first passes."""

UNABLE = (RuntimeError, AttributeError, TypeError)
"""Exceptions of a model that does not run in a format: `view` of a map in channels_last, an operator that this torch lacks."""


@dataclass(frozen=True)
class Trial:
    """How a model ran.

    Attributes:
        scores: `[N, K]`, as `OutputReader.compare` gives them.
        single: those of the first picture alone, `[1, K]`.
        seconds: of the fastest pass over all N.
    """

    scores: Tensor
    single: Tensor
    seconds: float

    def equals(self, other: Trial) -> bool:
        """Return whether both give the same, but for rounding."""
        pairs = ((self.scores, other.scores), (self.single, other.single))
        return all(bool((one - two).abs().max() <= EQUAL) for one, two in pairs)


def choose_memory_format(
    model: nn.Module,
    pictures: Tensor,
    channels_last: bool | None,
    may_prepack: bool = False,
    *,
    recorded: str | None = None,
    reader: OutputReader = FIRST,
) -> MemoryFormat:
    """Put the model into the memory format that is asked for or recorded, or else into the fastest, and return it.

    A format that nobody asked for must be clearly faster, and its results equal but for rounding.

    Args:
        pictures: `[N, 3, H, W]` to try it on, as many as the model takes at once.
        channels_last: what is asked for; None: whatever is faster.
        recorded: the format that packaging measured, which is taken without measuring; `prepacked` becomes channels_last, with a
            line in the log, where this torch or this processor cannot do it with equal answers.
        may_prepack: whether convolutions may be prepacked, where that is clearly faster; never where contiguous is asked for.
        reader: how the model's scores are read.

    Raises:
        ConfigError: channels_last was asked for, and the model does not run in it.
    """
    if recorded is not None:
        return _take_recorded(model, cast_input(model, pictures), recorded, may_prepack, reader)
    if channels_last is False or (channels_last is None and not _has_maps(model)):
        return _convert(model, "contiguous")
    pictures = cast_input(model, pictures)
    best: MemoryFormat = "channels_last" if channels_last else "contiguous"
    plain = None if channels_last else run_trial(model, pictures, reader)
    _convert(model, "channels_last")
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    try:
        trial = run_trial(model, pictures, reader)
    except UNABLE as error:
        if channels_last:
            raise _unable("channels_last: true", error) from error
        return _convert(model, "contiguous")
    if plain and trial.equals(plain) and trial.seconds < GAIN * plain.seconds:
        best = "channels_last"
    elif plain:
        trial = plain
    if may_prepack and _try_prepacking(model, pictures, trial, reader):
        return "prepacked"
    return _convert(model, best)


def _take_recorded(model: nn.Module, pictures: Tensor, recorded: str, may_prepack: bool, reader: OutputReader) -> MemoryFormat:
    """Put the model into a recorded format, and see that it runs.

    Raises:
        ConfigError: the model does not run in it.
    """
    if recorded == "contiguous":
        return _convert(model, "contiguous")
    _convert(model, "channels_last")
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    try:
        trial = run_trial(model, pictures, reader, timed=False)
    except UNABLE as error:
        raise _unable(f"memory_format: {recorded}", error) from error
    if recorded == "prepacked" and may_prepack:
        if _try_prepacking(model, pictures, trial, reader, measure=False):
            return "prepacked"
        logger.warning(
            "camserve: memory_format: prepacked was recorded, and cannot be had here with equal answers: channels_last instead, "
            "so answers may differ from another machine's in their last digits"
        )
    return "channels_last"


def _unable(asked: str, error: Exception) -> ConfigError:
    return ConfigError(f"{asked}: the model does not run in this memory format: {' '.join(str(error).split())[:300]}")


def _try_prepacking(model: nn.Module, pictures: Tensor, best: Trial, reader: OutputReader, *, measure: bool = True) -> bool:
    """Prepack the model, which is in channels_last, where that is equal to the `best` trial without, and faster."""
    undo = prepack(model, pictures)
    if undo is None:
        return False
    try:
        prepacked = run_trial(model, pictures, reader, timed=measure)
    except UNABLE as error:
        logger.info("camserve: convolutions run as torch has them, not prepacked: %s", " ".join(str(error).split())[:300])
    else:
        if prepacked.equals(best) and (not measure or prepacked.seconds < PREPACKED_GAIN * best.seconds):
            return True
    undo()
    return False


def _convert(model: nn.Module, form: MemoryFormat) -> MemoryFormat:
    model.to(memory_format=torch.contiguous_format if form == "contiguous" else torch.channels_last)  # type: ignore[call-overload]
    return form


def _has_maps(model: nn.Module) -> bool:
    """Return whether the model has more convolutions than one (a patch embedding), so that the memory format matters."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def run_trial(model: nn.Module, pictures: Tensor, reader: OutputReader = FIRST, *, timed: bool = True) -> Trial:
    """Run the model on pictures `[N, 3, H, W]`, and time it.

    The scores of one picture and of all N are computed without TF32. The timed passes run as the model is served, up to 5 of them
    within `BUDGET`; the fastest counts.
    """
    seconds: list[float] = []
    with torch.no_grad():
        with disable_tf32():
            single = reader.compare(model(pictures[:1]), 1)
            scores = reader.compare(model(pictures), len(pictures))
        while timed and (not seconds or (sum(seconds) < BUDGET and len(seconds) < 5)):
            start = time.perf_counter()
            reader.compare(model(pictures), len(pictures)).sum().item()
            seconds.append(time.perf_counter() - start)
    return Trial(scores, single, min(seconds, default=0.0))
