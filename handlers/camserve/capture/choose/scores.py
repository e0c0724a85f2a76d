"""How a model's scores are read: which of its outputs they are, of what kind, and in which function it ends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.output import choose_output
from camserve.capture.models.kinds import describe_failure, survey_model
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.endings import Ending, guess_ending
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.capture.survey.reader import Kind, OutputReader
from camserve.core.config import Config
from camserve.core.errors import ConfigError

LOG_SOFTMAX = (
    "A trial shows that the model ends in a log-softmax: probabilities are its softmax, and explained is log p, what speaks for "
    "a class and not for the others"
)

SURE = 12.0
"""A logit beyond this has a probability beyond 0.99999, or below 0.00001."""

INVERSE = {
    "sigmoid": "their logits, log(p / (1 - p)), as what goes into it cannot be reached",
    "softmax": "log p, as what goes into it cannot be reached: what speaks for a class and not for the others",
}
"""What is explained of a model whose last function cannot be looked behind."""


def read_kind_of_scores(model: Classifier, pictures: Tensor, config: Config, classes: int | None) -> tuple[str, ...]:
    """Find out how a model's scores are read, and put that into `model.reader`; return what the user should hear.

    Args:
        pictures: `[N, 3, H, W]`.
        classes: how many labels there are; None: it is not known.

    Raises:
        ConfigError: nothing tells which output holds them, or the configuration does not fit what a trial shows.
    """
    try:
        chosen = choose_output(model, pictures, config.output, classes)
    except MODEL_ERRORS as error:
        raise describe_failure(pictures, error) from error
    asked = config.scores if "scores" in config.given else None
    model.reader = OutputReader(path=chosen.path, width=chosen.width)
    notes = [chosen.note] if chosen.note else []
    if asked == "none":
        if config.method == "contrast":
            raise ConfigError("method: contrast: it contrasts classes, and with scores: none there are none; choose another")
        model.reader = replace(model.reader, kind="none")
        _check_threshold(config, model.reader)
        return tuple(notes)
    ending, reached = find_ending(model, pictures)
    kind = _choose_kind(asked, ending, chosen.width)
    if ending == "log_softmax":
        ending, notes = "", [*notes, LOG_SOFTMAX]
    model.reader = OutputReader(kind, chosen.path, chosen.width, chosen.width == 1, ending, reached)
    _check_threshold(config, model.reader)
    if model.reader.binary and not ending:
        notes += _warn_of_value(model, pictures)
    return (*notes, *_describe(model.reader, asked))


def _warn_of_value(model: Classifier, pictures: Tensor) -> list[str]:
    """Warn where the only output can hardly be a logit: its sigmoid is the same for all pictures."""
    given = fit_batch(pictures, model.batch)
    with torch.no_grad():
        values = model.reader.read(model.run(given), len(given)).values.float()
    if float(values.abs().min()) < SURE:
        return []
    return [
        f"Warning: the model's output is {float(values.min()):.4g} to {float(values.max()):.4g} on synthetic pictures; as a "
        "logit that is the same probability for all. Where it is a value (an age, a dose), --scores none serves it as one"
    ]


def _choose_kind(asked: str | None, ending: Ending, width: int) -> Kind:
    if width == 1:
        return "softmax"  # of two classes
    inside = "sigmoid" if ending == "sigmoid" else "softmax" if ending else None
    if asked and inside and asked != inside:
        raise ConfigError(
            f"scores: {asked}: a trial shows that the model ends in a {ending.replace('_', '-')}: leave scores out, or give "
            f"{inside}; with none, its outputs are served and explained as they are"
        )
    kind: Kind = "sigmoid" if "sigmoid" in (asked, inside) else "softmax"
    return kind


def _check_threshold(config: Config, reader: OutputReader) -> None:
    if "threshold" in config.given and reader.kind != "sigmoid" and not reader.binary:
        raise ConfigError(
            f"threshold: {config.threshold:g}: it says from where a label counts, with scores: sigmoid or a model of one logit; "
            f"this model's scores are {reader.kind}"
        )


def _describe(reader: OutputReader, asked: str | None) -> list[str]:
    notes = []
    if reader.binary:
        notes.append(
            "The model has one output, so there are two classes: 0 with probability 1 - p, explained by -z, and 1 with p, "
            "explained by z, the logit; --positive names the second"
        )
    if reader.ending:
        explained = "the logits before it" if reader.reached else INVERSE[reader.ending]
        notes.append(
            f"A trial shows that the model ends in a {reader.ending}: probabilities are as it gives them, and explained are "
            f"{explained}"
        )
    if reader.kind == "sigmoid" and not asked:
        notes.append("Scores: sigmoid, each label by itself; --threshold says from where one counts")
    return notes


def find_ending(model: Classifier, pictures: Tensor) -> tuple[Ending, bool]:
    """Find the function in which a model ends, by trial, and whether its input can be reached.

    Outputs between 0 and 1 may be logits, by chance: those whose function is not seen must stay there when a layer gives anything
    at all. Those of a softmax add up to 1 on any pictures.

    Args:
        pictures: `[N, 3, H, W]`.
    """
    pictures = fit_batch(pictures, model.batch)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)).to(pictures)
    scores: list[Tensor] = []
    guess: Ending = ""
    for given in (pictures, -pictures, noise, -noise, 10 * pictures, 10 * noise):
        try:
            with torch.no_grad():
                scores.append(model.reader.read(model.run(given), len(given)).values)
        except MODEL_ERRORS:  # it may refuse what is no picture
            return "", False
        guess = guess_ending(torch.cat(scores)) if sum(map(len, scores)) > 1 else ""
        if not guess and (len(scores) > 1 or len(given) > 1):
            return "", False
    try:
        seen = model.find_ending(pictures)
    except MODEL_ERRORS:
        seen = ""
    if seen == guess:
        return seen, True
    if guess == "sigmoid" and not _stays_between(model, pictures):
        return "", False
    return guess, False


def _stays_between(model: Classifier, pictures: Tensor) -> bool:
    """Return whether the outputs stay between 0 and 1 whatever the last layer with a map gives."""
    generator = torch.Generator().manual_seed(2)
    try:
        maps = survey_model(model, pictures).maps
        if not maps:
            return False
        shape = maps[-1].site.layout.shape(len(pictures))
        outputs = [
            model.run_with(maps[-1].site, pictures, scale * torch.randn(shape, generator=generator).to(pictures))
            for scale in (1, 1, 100, 100, 1e4)
        ]
    except (*MODEL_ERRORS, ConfigError):
        return False
    scores = torch.cat(outputs)
    return bool(scores.min() >= 0) and bool(scores.max() <= 1)
