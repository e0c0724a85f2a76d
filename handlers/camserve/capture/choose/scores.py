"""How a model's scores are read: which of its outputs they are, of what kind, and in which function it ends."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.choose.ending import find_ending
from camserve.capture.choose.output import Choice, choose_output
from camserve.capture.models.kinds import describe_failure
from camserve.capture.models.passes import fit_batch
from camserve.capture.precision import disable_tf32
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

ROW_ERROR = 1e-4
"""Tolerance between a picture's scores in two passes, as a share of the largest score; or some steps of half precision. Of 73
networks in float32 none is off by more than 3e-6 alone and beside another picture."""

ROUNDING = 8
"""How many times what rounding the picture's values changes of its scores is rounding still. Deep networks magnify it (ResNet-152
with random weights to 1e-4), and kernels round one picture otherwise than two: in seven such networks up to 1.5 times as much."""

BRIGHT = 2
"""How far the mean of a bright picture, or of a dark one, lies from that of others, in standard deviations."""

CHANGING = (
    "two passes over the same picture give other scores, {share:.2g} of the largest apart: the model draws at random when it "
    "predicts (dropout without training=self.training, noise), or keeps something from one call to the next, so that no map of "
    "one pass explains another. Take that out of its forward; where the draws are wanted, fix them there: "
    "with torch.random.fork_rng(): torch.manual_seed(0)"
)

TOGETHER = (
    "the model takes {count} pictures at once, and these change each other's scores, so that none gets what it gets alone; "
    "export or trace it for one picture"
)

ONE_BY_ONE = (
    "Warning: pictures in one pass change each other's scores (by statistics of the batch, perhaps), or the model takes one at a "
    "time, so each has a pass of its own, and gets the scores that it gets alone"
)

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
    most = model.batch[1]
    chosen = _choose_output(model, pictures, config, classes)
    asked = config.scores if "scores" in config.given else None
    model.reader = OutputReader(path=chosen.path, width=chosen.width)
    notes = ([chosen.note] if chosen.note else []) + ([ONE_BY_ONE] if model.batch[1] != most else [])
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


def _choose_output(model: Classifier, pictures: Tensor, config: Config, classes: int | None) -> Choice:
    """Choose the output, of a model that takes one picture and not several with one at a time (`model.batch`)."""
    try:
        return choose_output(model, pictures, config.output, classes)
    except ConfigError:
        raise
    except MODEL_ERRORS as error:
        if model.batch == (1, None):
            model.batch = (1, 1)
            with suppress(*MODEL_ERRORS):
                return choose_output(model, pictures, config.output, classes)
        raise describe_failure(pictures, error) from error


def check_rows(model: Classifier, pictures: Tensor) -> tuple[str, ...]:
    """Check that a picture's scores depend on nothing else; return what the user should hear.

    A model whose pictures change each other's scores gets one at a time (`model.batch`). The others have little contrast, so that
    what is common to all is nobody's own; one is bright and one is dark, for whoever decides by what all of a pass have.

    Args:
        pictures: `[N, 3, H, W]`, N at least 2.

    Raises:
        ConfigError: two passes over one picture give other scores; or it takes several pictures and not one, or several that
            change each other's scores.
    """
    one, other, apart = pictures[:1], pictures[1:2] / 8, BRIGHT * pictures.std()
    given = fit_batch(torch.cat([one, other + apart, other - apart]), model.batch)
    try:
        together = _read_values(model, given)
    except ConfigError:  # it may refuse what is so bright, or so dark
        given = fit_batch(torch.cat([one, other]), model.batch)
        together = _read_values(model, given)
    several, taken = given, model.batch
    changed = taken[0] == 1 != taken[1]
    if changed:
        alone = _read_alone(model, given)
        beside = _find_difference(alone, together)
        if beside <= _tolerance(together):
            return ()
        given, together, model.batch = given[:1], alone[:1], (1, 1)
    share = _find_difference(_read_values(model, given), together)
    if share > _tolerance(together):
        raise ConfigError(CHANGING.format(share=share))
    if changed and beside <= ROUNDING * _find_difference(_read_alone(model, _round(several)), alone):
        model.batch = taken
        return ()
    if taken[0] > 1:
        beside = _find_difference(_read_values(model, torch.cat([given[:1], 8 * given[1:]]))[:1], together[:1])
        if beside > _tolerance(together):
            raise ConfigError(TOGETHER.format(count=taken[0]))
    return (ONE_BY_ONE,) if changed else ()


def _read_alone(model: Classifier, pictures: Tensor) -> Tensor:
    return torch.cat([_read_values(model, each) for each in pictures[:, None]])


def _round(pictures: Tensor) -> Tensor:
    """Change each value by up to two of the steps that float32 has there."""
    chance = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)).to(pictures)
    return pictures * (1 + 2 * torch.finfo(torch.float32).eps * (2 * chance - 1))


def _read_values(model: Classifier, pictures: Tensor) -> Tensor:
    try:
        with torch.no_grad(), disable_tf32():
            return model.reader.read(model.run(pictures), len(pictures)).values
    except MODEL_ERRORS as error:
        raise describe_failure(pictures, error) from error


def _find_difference(scores: Tensor, others: Tensor) -> float:
    """Return how far finite scores are apart, as a share of the largest; 0 where none is."""
    finite = torch.isfinite(scores) & torch.isfinite(others)
    scores, others = scores[finite].double(), others[finite].double()
    return float(((scores - others).abs().max() / scores.abs().max()).nan_to_num(0.0)) if len(scores) else 0.0


def _tolerance(scores: Tensor) -> float:
    return max(ROW_ERROR, 8 * torch.finfo(scores.dtype).eps)


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
