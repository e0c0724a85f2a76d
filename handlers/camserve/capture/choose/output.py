"""Chooses the class scores among a model's outputs, by name, by the labels' number and by trial; what stays open is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.base import Classifier
from camserve.capture.models.passes import fit_batch
from camserve.capture.survey import relations
from camserve.capture.survey.layers import MODEL_ERRORS
from camserve.capture.survey.outputs import Entry, Path, as_rows, describe_fault, list_entries, list_shapes
from camserve.capture.survey.relations import Link, Squash, says_the_same, sums_up
from camserve.core.errors import ConfigError

SCORES = ("logits", "scores", "prediction", "predictions", "out", "output", "prob", "probs", "probabilities")
"""Names of class scores, the surest first."""

OTHERS = ("aux", "embed", "feat", "hidden", "loss", "mask", "pool", "proj", "attention")
"""Parts of names of what is no class scores."""

RELATED = (
    "output: {other} is made of {one}, each gives other probabilities, and nothing tells which of them are the class scores: "
    "the model gives {listed}; say which (--output {one} or --output {other}), by its name or its place, or return only the "
    "class scores from its forward"
)
EITHER = (
    "output: {other} is the softmax of {one}, or its sigmoid, which are the same where logits are as large as on all trial "
    "pictures; --output {other} serves these probabilities"
)
BEST = (
    "output: beside {one}, one value a picture, the model gives {other}, whole numbers as an argmax does: {one} may say how sure "
    "it is of that class, and be no score of a class of its own; return all class scores, [N, classes], from its forward; if "
    "{one} tells the second of two classes, say so (--output {one})"
)


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
    graph = _Graph(model, pictures, entries)
    for reason, keep in _rules(model, graph, classes):
        if len(left) == 1:
            break
        kept = keep(left)
        if kept and len(kept) < len(left):
            left, why = kept, reason
    _refuse_best(graph, left[0], entries)
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


def _rules(model: Classifier, graph: _Graph, classes: int | None) -> list[tuple[str, Keep]]:
    """Return what may tell the class scores from the rest, the surest first, each with the words for it."""
    return [
        ("as it is the sigmoid of another: each label by itself", graph.drop_behind_sigmoid),
        ("as the others are made of it", graph.drop_made),
        (f"as it has as many values as there are labels, {classes}", lambda left: _keep_width(left, classes)),
        ("by its name", _keep_named),
        ("by the others' names", _drop_named_otherwise),
        ("as the others say the same", _drop_repeated),
        ("as it is computed from the others", graph.drop_features),
        ("", graph.refuse_related),  # keeps all, or none
        ("as the others are no head of classes", lambda left: [each for each in left if _is_head(model, each)]),
    ]


def _drop_repeated(left: Sequence[_Candidate]) -> Sequence[_Candidate]:
    return [each for place, each in enumerate(left) if not any(says_the_same(each.rows, other.rows) for other in left[:place])]


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
    return any(each.shape == candidate.rows.shape and relations.is_alike(each, candidate.rows) for each in pooled)


def _word(candidate: _Candidate) -> str:
    return str(candidate.entry.path[-1]).lower() if candidate.entry.path else ""


class _Graph:
    """How the outputs are made of each other in one pass with gradients, which is run when it is first asked for."""

    def __init__(self, model: Classifier, pictures: Tensor, entries: Sequence[Entry]) -> None:
        self._model = model
        self._entries = entries
        self._pictures = pictures
        self._given: dict[Path, Tensor] | None = None

    def drop_behind_sigmoid(self, left: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Drop the logits of labels each of which has a probability of its own among the outputs: that says how they are read."""
        made = [(each, {self._find_squash(each, other) for other in left}) for each in left]
        return [each for each, kinds in made if "sigmoid" not in kinds or "softmax" in kinds]

    def drop_made(self, left: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Drop what is the softmax of another output, or sums it up: the logits tell more."""
        pairs = [(one, other) for one in left for other in left if one is not other]
        made = [other for one, other in pairs if self._find_squash(one, other) == "softmax" or sums_up(one.rows, other.rows)]
        return [each for each in left if not any(each is other for other in made)]

    def _find_squash(self, one: _Candidate, other: _Candidate) -> Squash:
        found = relations.find_squash(one.rows, other.rows)
        if found == "either":
            found = relations.read_squash(self._run().get(other.entry.path))
            if not found:
                raise ConfigError(EITHER.format(one=one.entry.name, other=other.entry.name))
        return found

    def drop_features(self, left: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Drop embeddings, which have length 1, features from which weights make another output, and single values of scores."""
        pairs = [(one, other) for one in left for other in left if one is not other]
        above = {one.entry.path for one, other in pairs if self._is_above(one, other)}
        below = {
            other.entry.path for one, other in pairs if self._is_value(one, other) and self._find_link(one, other) == "fixed"
        }
        return [each for each in left if not relations.has_length_1(each.rows) and each.entry.path not in above | below]

    def _is_above(self, one: _Candidate, other: _Candidate) -> bool:
        """Return whether an output is features of another one; those of one value are no scores themselves."""
        link = self._find_link(one, other)
        if link == "fixed":
            return one.rows.shape[1] != other.rows.shape[1] > 1 and not self.may_be_scores(one)
        return bool(link) and not self._is_value(one, other)

    def _is_value(self, one: _Candidate, other: _Candidate) -> bool:
        """Return whether an output is one value beside several that may be class scores."""
        return other.rows.shape[1] == 1 < one.rows.shape[1] and self.may_be_scores(one)

    def refuse_related(self, left: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Refuse outputs one of which is made of the other; return them where there are none such.

        Raises:
            ConfigError: there are such.
        """
        for one in left:
            for other in left:
                if self._find_link(one, other) or (one is not other and relations.has_order(one.rows, other.rows)):
                    listed = list_shapes(list(self._entries), 12)
                    raise ConfigError(RELATED.format(one=one.entry.name, other=other.entry.name, listed=listed))
        return left

    def _find_link(self, one: _Candidate, other: _Candidate) -> Link:
        if one is other:
            return ""
        ends = self._run()
        found: Link = ""
        if one.entry.path in ends and other.entry.path in ends:
            found = relations.find_link(ends[one.entry.path], ends[other.entry.path])
        return found or ("weighed" if relations.is_fed(one.rows, other.rows, self._model.weights()) else "")

    def may_be_scores(self, candidate: _Candidate) -> bool:
        """Return whether weights give an output; where no graph tells, whether some matrix has as many rows."""
        end = self._run().get(candidate.entry.path)
        known = None if end is None else relations.is_weighed(end)
        width = candidate.rows.shape[1]
        return any(weight.ndim == 2 and len(weight) == width for weight in self._model.weights()) if known is None else known

    def _run(self) -> dict[Path, Tensor]:
        if self._given is None:
            with torch.enable_grad():
                try:
                    entries = list_entries(self._model.run(self._pictures.clone().requires_grad_()))
                    self._given = {entry.path: entry.tensor for entry in entries}
                except MODEL_ERRORS:  # it works in place, or forbids gradients
                    self._given = {}
        return self._given


def _refuse_best(graph: _Graph, chosen: _Candidate, entries: Sequence[Entry]) -> None:
    """Refuse one value a picture beside whole numbers, but for the probability or the logit of which they say that it is high.

    Raises:
        ConfigError: it may be the largest of several scores.
    """
    value = chosen.rows.flatten()
    limit = 0.5 if value.min() >= 0 and value.max() <= 1 else 0.0
    for entry in entries if chosen.rows.shape[1] == 1 else ():
        whole = entry.tensor.flatten()
        if whole.is_floating_point() or whole.is_complex() or len(whole) != len(value):
            continue
        if not torch.equal(whole.long(), (value > limit).long()) or not graph.may_be_scores(chosen):
            raise ConfigError(BEST.format(one=chosen.entry.name, other=f"{entry.name} {list(entry.tensor.shape)}"))


def _is_head(model: Classifier, candidate: _Candidate) -> bool:
    """Return whether some matrix of the model's has as many rows as the output has values."""
    width = candidate.rows.shape[1]
    return any(weight.ndim in (2, 4) and weight.shape[0] == width and weight.shape[2:].numel() == 1 for weight in model.weights())


def _advise_on(entries: Sequence[Entry]) -> str:
    names = [entry.name for entry in entries if entry.name]
    return f"; wrap the model in a module whose forward returns scores [N, classes] made of {' or '.join(names)}" if names else ""
