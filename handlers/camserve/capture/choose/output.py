"""Chooses the class scores among a model's outputs, by name, by the labels' number and by trial; what stays open is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.capture.survey.outputs import Entry, Path, as_rows, describe_fault, list_entries, list_shapes
from camserve.core.errors import ConfigError

SCORES = ("logits", "scores", "prediction", "predictions", "out", "output", "prob", "probs", "probabilities")
"""Names of class scores, the surest first."""

OTHERS = ("aux", "embed", "feat", "hidden", "loss", "mask", "pool", "proj", "attention")
"""Parts of names of what is no class scores."""

SAME = 1e-4
"""Tolerance between an output and what another one makes of it, as a share of the largest value."""


@dataclass(frozen=True)
class Choice:
    """Where a model's class scores lie.

    Attributes:
        path: in what it gives.
        width: how many there are for each picture.
        several: whether it gives more than them, so that the archive should say which.
        note: what the user should hear; "" where there was nothing to choose.
    """

    path: Path
    width: int
    several: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Candidate:
    entry: Entry
    rows: Tensor


def choose_output(model: Classifier, pictures: Tensor, asked: int | str | None = None, classes: int | None = None) -> Choice:
    """Choose the output that holds the class scores.

    Args:
        pictures: `[N, 3, H, W]`.
        asked: its place or name, as configured; None: it is to be found.
        classes: how many labels there are; None: it is not known.

    Raises:
        ConfigError: there is no such output, it holds no scores, or nothing tells which one does.
        ValueError: none of them holds scores.
    """
    pictures = fit_batch(pictures, model.batch)
    with torch.no_grad():
        entries = list_entries(model.run(pictures))
    candidates = [
        _Candidate(entry, rows) for entry in entries if (rows := as_rows(entry.tensor.detach(), len(pictures))) is not None
    ]
    if asked is not None:
        return _take(_find_asked(asked, entries, candidates), entries, "as asked")
    if not candidates:
        raise ValueError(f"{describe_fault(entries, len(pictures))}{_advise_on(entries)}")
    left: Sequence[_Candidate] = candidates
    why = ""
    for reason, keep in _rules(model, pictures, classes):
        if len(left) == 1:
            break
        kept = keep(left)
        if kept and len(kept) < len(left):
            left, why = kept, reason
    doubtful = len(entries) > 1 and left[0].rows.shape[1] != classes and _are_features(left[0], entries)
    if doubtful or (len(left) > 1 and not all(_is_head(model, each) for each in left)):
        raise ConfigError(
            f"output: nothing tells which of the model's outputs are the class scores: {list_shapes(entries, 12)}; choose one "
            f"(--output {left[-1].entry.name}), by its name or its place, or give labels (--labels), whose number tells"
        )
    return _take(left[0], entries, why, left[1:])


def _find_asked(asked: int | str, entries: Sequence[Entry], candidates: Sequence[_Candidate]) -> _Candidate:
    """Find an output by its name, or by its place among all tensors that the model gives."""
    places = {entry.name: entry for entry in entries}
    entry = places.get(str(asked))
    if entry is None and str(asked).isdecimal() and int(asked) < len(entries):
        entry = entries[int(asked)]
    listed = f"the model gives {list_shapes(list(entries), 12)}" if entries else "the model gives no tensor"
    if entry is None:
        raise ConfigError(f"output: there is no output {asked!r}; {listed}")
    found = next((each for each in candidates if each.entry is entry), None)
    if found is None:
        raise ConfigError(f"output: {asked!r} holds no class scores [N, classes]; {listed}")
    return found


def _take(chosen: _Candidate, entries: Sequence[Entry], why: str = "", heads: Sequence[_Candidate] = ()) -> Choice:
    width = chosen.rows.shape[1]
    if len(entries) == 1:
        return Choice(chosen.entry.path, width)
    what = f"The model gives {list_shapes(list(entries), 12)}: {chosen.entry.name} is served{f', {why}' if why else ''}"
    if heads:
        names = " or ".join(f"--output {each.entry.name}" for each in heads)
        what = f"Warning: {what}, as the first of {1 + len(heads)} heads; {names} serves the other{'s' if len(heads) > 1 else ''}"
    return Choice(chosen.entry.path, width, several=True, note=what)


Keep = Callable[[Sequence[_Candidate]], Sequence[_Candidate]]


def _rules(model: Classifier, pictures: Tensor, classes: int | None) -> list[tuple[str, Keep]]:
    """Return what may tell the class scores from the rest, the surest first, each with the words for it."""
    return [
        ("as the others are made of it", _drop_squashed),
        (f"as it has as many values as there are labels, {classes}", lambda left: _keep_width(left, classes)),
        ("by its name", _keep_named),
        ("by the others' names", _drop_named_otherwise),
        ("as it is computed from the others", lambda left: _drop_features(model, pictures, left)),
        ("as the others are no head of classes", lambda left: [each for each in left if _is_head(model, each)]),
    ]


def _drop_squashed(left: Sequence[_Candidate]) -> Sequence[_Candidate]:
    """Drop what is the softmax or the sigmoid of another output: the logits tell more."""
    return [each for each in left if not any(_squashes(other.rows, each.rows) for other in left if other is not each)]


def _squashes(logits: Tensor, other: Tensor) -> bool:
    if logits.shape != other.shape or torch.equal(logits, other):
        return False
    made = [logits.sigmoid()] + ([logits.softmax(1), logits.log_softmax(1)] if logits.shape[1] > 1 else [])
    return any(_alike(each, other) for each in made)


def _keep_width(left: Sequence[_Candidate], classes: int | None) -> Sequence[_Candidate]:
    exact = [each for each in left if each.rows.shape[1] == classes]
    return exact or [each for each in left if classes in (1, 2) and each.rows.shape[1] == 1]


def _keep_named(left: Sequence[_Candidate]) -> Sequence[_Candidate]:
    for name in SCORES:
        found = [each for each in left if _word(each) == name]
        if found:
            return found
    return []


def _drop_named_otherwise(left: Sequence[_Candidate]) -> Sequence[_Candidate]:
    return [each for each in left if not _is_named_otherwise(each)]


def _is_named_otherwise(candidate: _Candidate) -> bool:
    return any(part in str(step).lower() for step in candidate.entry.path for part in OTHERS)


def _are_features(candidate: _Candidate, entries: Sequence[Entry]) -> bool:
    """Return whether an output says by its name that it is no class scores, or is a map beside it, pooled."""
    if _is_named_otherwise(candidate):
        return True
    maps = [each.tensor.detach() for each in entries if each.tensor.ndim == 4 and each.tensor.is_floating_point()]
    pooled = [made for each in maps for made in (each.mean((2, 3)), each.amax((2, 3)))]
    return any(each.shape == candidate.rows.shape and _alike(each, candidate.rows) for each in pooled)


def _word(candidate: _Candidate) -> str:
    return str(candidate.entry.path[-1]).lower() if candidate.entry.path else ""


def _drop_features(model: Classifier, pictures: Tensor, left: Sequence[_Candidate]) -> Sequence[_Candidate]:
    """Drop what another output is computed from, and rows of length 1, which are embeddings."""
    above = _find_computed_on(model, pictures, left)
    return [
        each
        for each in left
        if not _has_length_1(each.rows)
        and each.entry.path not in above
        and not any(_feeds(model, each, other) for other in left if other is not each)
    ]


def _find_computed_on(model: Classifier, pictures: Tensor, left: Sequence[_Candidate]) -> set[Path]:
    """Find the outputs with which another one of them can be differentiated, so that the model went on with them."""
    with torch.enable_grad():
        try:
            given = {entry.path: entry.tensor for entry in list_entries(model.run(pictures.clone().requires_grad_()))}
            ends = {each.entry.path: given[each.entry.path] for each in left}
            sums = {path: end.double().sum() for path, end in ends.items() if end.requires_grad}
            return {
                path
                for path in sums
                for other, total in sums.items()
                if other != path and torch.autograd.grad(total, ends[path], allow_unused=True, retain_graph=True)[0] is not None
            }
        except MODEL_ERRORS:  # it works in place, or forbids gradients
            return set()


def _has_length_1(rows: Tensor) -> bool:
    lengths = rows.float().norm(dim=1)
    return rows.shape[1] > 1 and bool((lengths - 1).abs().max() < 1e-3) and bool(rows.min() < 0)


def _feeds(model: Classifier, one: _Candidate, other: _Candidate) -> bool:
    """Return whether `other = one @ weight.T + bias` with some matrix of the model's."""
    shape = (other.rows.shape[1], one.rows.shape[1])
    features, scores = one.rows.double(), other.rows.double()
    for weight in model.weights():
        if tuple(weight.shape) in (shape, (*shape, 1, 1)):
            rest = scores - features @ weight.detach().flatten(1).double().T
            if _alike(rest, rest[:1].expand_as(rest), scores.abs().max()) and not _alike(scores, scores[:1].expand_as(scores)):
                return True
    return False


def _alike(one: Tensor, other: Tensor, scale: Tensor | None = None) -> bool:
    scale = other.abs().max() if scale is None else scale
    return bool((one - other).abs().max() <= SAME * scale)


def _is_head(model: Classifier, candidate: _Candidate) -> bool:
    """Return whether some matrix of the model's has as many rows as the output has values."""
    width = candidate.rows.shape[1]
    return any(weight.ndim in (2, 4) and weight.shape[0] == width and weight.shape[2:].numel() == 1 for weight in model.weights())


def _advise_on(entries: Sequence[Entry]) -> str:
    names = [entry.name for entry in entries if entry.name]
    return f"; wrap the model in a module whose forward returns scores [N, classes] made of {' or '.join(names)}" if names else ""
