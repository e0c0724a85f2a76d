"""Finds by trial the function in which a model ends, and refuses outputs that are no scores of classes, such as distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.watch import VALUES, Made, Watch
from camserve.capture.models.kinds import survey_model
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.endings import PERCENT, ROUNDED, Ending, Guess, are_flat, guess_ending
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.core.errors import ConfigError

SUMMED = (
    "scores: the model's outputs are never below 0 and add up to {:.4g} for every picture, and nothing tells how they are "
    "probabilities; return them so that they add up to 1, or the logits, from its forward" + VALUES
)
NEGATIVE = (
    "Warning: none of the model's outputs is ever above 0, whatever its layers give: where they are logarithms of probabilities, "
    "their softmax need not be what the model means by probabilities" + VALUES
)
POSITIVE = (
    "Warning: none of the model's outputs is ever below 0, whatever its layers give: where they are distances, of which the "
    "smallest is the class, the farthest is served as the most probable; where they are evidence or counts, their softmax is not "
    "what the model means by probabilities; return logits or probabilities from its forward" + VALUES
)
PERCENTAGE = "Warning: the model's output is read as a percentage, of two classes" + VALUES


@dataclass(frozen=True)
class Found:
    """How a model ends.

    Attributes:
        ending: its last function; "" where it gives logits.
        reached: whether what goes into it can be watched.
        scale: by what its values are multiplied.
        notes: what the user should hear.
    """

    ending: Ending = ""
    reached: bool = False
    scale: float = 1.0
    notes: tuple[str, ...] = ()


def find_ending(model: Classifier, pictures: Tensor) -> Found:
    """Find the function in which a model ends, by trial, and whether its input can be reached.

    Outputs between 0 and 1 may be logits, by chance: those whose function is not seen must stay there when a layer gives anything
    at all. Those of a softmax add up to 1 on any pictures, or to 100 as percentages. A function that saturates on all of these
    pictures, as of a model that is sure of whatever it sees, is found by what it makes of anything that a layer gives.

    Args:
        pictures: `[N, 3, H, W]`.

    Raises:
        ConfigError: the outputs are distances, or made of a sigmoid in a way that nothing tells the probabilities.
    """
    pictures = fit_batch(pictures, model.batch)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)).to(pictures)
    scores: list[Tensor] = []
    made: list[Made] = []
    guess = Guess()
    for given in (pictures, -pictures, noise, -noise, 10 * pictures, 10 * noise):
        try:
            watch, values = _run(model, given)
        except MODEL_ERRORS:  # it may refuse what is no picture
            return Found()
        made = watch.explain(values) if not scores else [each for each in made if each.holds(watch, values)]
        scores.append(values)
        guess = guess_ending(torch.cat(scores)) if sum(map(len, scores)) > 1 else Guess()
        flat = sum(map(len, scores)) > 1 and are_flat(torch.cat(scores))
        open_still = made or flat or guess != Guess()
        if not open_still and (len(scores) > 1 or len(given) > 1):
            return Found()
    if flat:
        guess = _guess_of_flat(model, pictures, scores)
    notes = [] if any(each.reads for each in made) else [note for each in made if (note := each.judge())]
    return _settle(model, pictures, guess, tuple(notes[:1]))


def _run(model: Classifier, pictures: Tensor) -> tuple[Watch, Tensor]:
    """Run a model under the watch, or without it where its code does not bear one; return the watch and the scores."""
    watch = Watch(len(pictures) * (model.reader.width or 1))
    with torch.no_grad():
        try:
            with watch:
                return watch, model.reader.read(model.run(pictures), len(pictures)).values
        except MODEL_ERRORS:
            watch.seen.clear()
            return watch, model.reader.read(model.run(pictures), len(pictures)).values


def _guess_of_flat(model: Classifier, pictures: Tensor, scores: Sequence[Tensor]) -> Guess:
    """Guess the last function of a model that gives the same for all pictures, by what it makes of anything, or as it is seen."""
    anything = _run_with_anything(model, pictures)
    guess = Guess() if anything is None else guess_ending(torch.cat([*scores, anything]))
    return guess if guess != Guess() else Guess(_see_ending(model, pictures))


def _see_ending(model: Classifier, pictures: Tensor) -> Ending:
    """Return the function that is seen to give the scores; "" where none is."""
    try:
        return model.find_ending(pictures)
    except MODEL_ERRORS:
        return ""


def _settle(model: Classifier, pictures: Tensor, guess: Guess, notes: tuple[str, ...]) -> Found:
    """Settle what the scores' range leaves open."""
    if guess.ending == "softmax" and guess.scale not in (1.0, PERCENT):
        raise ConfigError(SUMMED.format(guess.scale))
    if not guess.ending:
        low, high = _range_of(model, pictures) if guess.side and not notes else (-torch.inf, torch.inf)
        return Found(notes=(NEGATIVE,) if high <= 0 else (POSITIVE,) if low >= 0 else notes)
    kept, model.reader = model.reader, replace(model.reader, scale=guess.scale)
    reached = _see_ending(model, pictures) == guess.ending
    model.reader = kept
    if guess.ending == "sigmoid" and not reached:
        if model.clips:
            return Found(notes=notes)
        low, high = _range_of(model, pictures)
        reaches = guess.scale == 1 or high > PERCENT * (1 - ROUNDED)  # logits may end in a ReLU, and be below 100 by chance
        if not (low >= 0 and high <= guess.scale and reaches):
            return Found(notes=(POSITIVE,) if low >= 0 and not notes else notes)
    if guess.scale != 1 and model.reader.width == 1:
        notes = (*notes, PERCENTAGE)
    return Found(guess.ending, reached, guess.scale, notes)


def _range_of(model: Classifier, pictures: Tensor) -> tuple[float, float]:
    """Return between what the outputs lie whatever the last layer with a map gives; all numbers where that cannot be tried."""
    scores = _run_with_anything(model, pictures)
    return (-torch.inf, torch.inf) if scores is None else (float(scores.min()), float(scores.max()))


def _run_with_anything(model: Classifier, pictures: Tensor) -> Tensor | None:
    """Return the outputs `[N, K]` where the last layer with a map gives anything at all; None where that cannot be tried."""
    generator = torch.Generator().manual_seed(2)
    try:
        maps = survey_model(model, pictures).maps
        if not maps:
            return None
        shape = maps[-1].site.layout.shape(len(pictures))
        outputs = [
            model.run_with(maps[-1].site, pictures, scale * torch.randn(shape, generator=generator).to(pictures))
            for scale in (1, 1, 100, 100, 1e4)
        ]
    except (*MODEL_ERRORS, ConfigError):
        return None
    return torch.cat(outputs)
