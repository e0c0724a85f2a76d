"""Finds by trial the function in which a model ends, and refuses outputs that are no scores of classes, such as distances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.watch import VALUES, Made, Watch
from camserve.capture.models.kinds import survey_model
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.endings import PERCENT, ROUNDED, Ending, Guess, guess_ending
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
    at all. Those of a softmax add up to 1 on any pictures, or to 100 as percentages.

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
        open_still = made or guess != Guess()
        if not open_still and (len(scores) > 1 or len(given) > 1):
            return Found()
    notes = [note for each in made if (note := each.judge())]
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


def _settle(model: Classifier, pictures: Tensor, guess: Guess, notes: tuple[str, ...]) -> Found:
    """Settle what the scores' range leaves open."""
    if guess.ending == "softmax" and guess.scale not in (1.0, PERCENT):
        raise ConfigError(SUMMED.format(guess.scale))
    if not guess.ending:
        never_above = guess.negative and not notes and _range_of(model, pictures)[1] <= 0
        return Found(notes=(NEGATIVE,) if never_above else notes)
    kept, model.reader = model.reader, replace(model.reader, scale=guess.scale)
    try:
        seen = model.find_ending(pictures)
    except MODEL_ERRORS:
        seen = ""
    finally:
        model.reader = kept
    reached = seen == guess.ending
    if guess.ending == "sigmoid" and not reached:
        if model.clips:
            return Found(notes=notes)
        low, high = _range_of(model, pictures)
        reaches = guess.scale == 1 or high > PERCENT * (1 - ROUNDED)  # logits may end in a ReLU, and be below 100 by chance
        if not (low >= 0 and high <= guess.scale and reaches):
            return Found(notes=notes)
    if guess.scale != 1 and model.reader.width == 1:
        notes = (*notes, PERCENTAGE)
    return Found(guess.ending, reached, guess.scale, notes)


def _range_of(model: Classifier, pictures: Tensor) -> tuple[float, float]:
    """Return between what the outputs lie whatever the last layer with a map gives; all numbers where that cannot be tried."""
    generator = torch.Generator().manual_seed(2)
    anything = -torch.inf, torch.inf
    try:
        maps = survey_model(model, pictures).maps
        if not maps:
            return anything
        shape = maps[-1].site.layout.shape(len(pictures))
        outputs = [
            model.run_with(maps[-1].site, pictures, scale * torch.randn(shape, generator=generator).to(pictures))
            for scale in (1, 1, 100, 100, 1e4)
        ]
    except (*MODEL_ERRORS, ConfigError):
        return anything
    scores = torch.cat(outputs)
    return float(scores.min()), float(scores.max())
