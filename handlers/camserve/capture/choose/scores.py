"""How a model's scores are read: which of its outputs they are, of what kind, and in which function it ends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.ending import find_ending
from camserve.capture.choose.output import choose_output
from camserve.capture.models.kinds import describe_failure
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.endings import Ending
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.capture.survey.reader import Kind, OutputReader
from camserve.core.config import REFINECAM, Config
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
        if config.method in ("contrast", REFINECAM):
            raise ConfigError(
                f"method: {config.method}: it contrasts classes, and with scores: none there are none; choose another"
            )
        model.reader = replace(model.reader, kind="none")
        _check_threshold(config, model.reader)
        return tuple(notes)
    found = find_ending(model, pictures)
    ending = found.ending
    kind = _choose_kind(asked, ending, chosen.width)
    notes += found.notes
    if ending == "log_softmax":
        ending, notes = "", [*notes, LOG_SOFTMAX]
    model.reader = OutputReader(kind, chosen.path, chosen.width, chosen.width == 1, ending, found.reached, found.scale)
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
        given = "as it gives them" if reader.scale == 1 else f"what it gives, divided by {reader.scale:g}"
        times = "" if reader.scale == 1 else f", times {reader.scale:g}"
        notes.append(
            f"A trial shows that the model ends in a {reader.ending}{times}: probabilities are {given}, and explained are "
            f"{explained}"
        )
    if reader.kind == "sigmoid" and not asked:
        notes.append("Scores: sigmoid, each label by itself; --threshold says from where one counts")
    return notes
