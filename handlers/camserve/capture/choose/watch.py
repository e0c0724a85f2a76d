"""Watches what a model's outputs are made of, in every kind of model, and says which of them are no scores of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from camserve.capture.survey.endings import PERCENT, ROUNDED
from camserve.core.errors import ConfigError

NARROW = 3.0
"""Outputs that can lie no further from 0 than this are no logits: of two classes none could be surer than 0.998."""

VALUES = "; where its outputs are values (a rating, a dose), --scores none serves and explains them as they are"

DISTANCE = (
    "scores: a trial shows that the model gives distances, of which the smallest is its class, and the largest would be served "
    "as the most probable; return their negatives from its forward"
)
LOG_SIGMOID = (
    "scores: a trial shows that the model ends in the logarithm of a sigmoid, which is read neither as logits nor as "
    "probabilities; return what goes into it, or its sigmoid, from its forward"
)
SORTED = (
    "scores: a trial shows that the model gives its scores in order of size (a topk or a sort), so that the first class would be "
    "the most probable one in every picture; return all class scores in the classes' own order from its forward" + VALUES
)
RANGED = (
    "scores: a trial shows that the model's outputs are {slope:.4g} times a {ending}{offset}, and nothing tells how they are "
    "probabilities; return the {ending} itself, or what goes into it, from its forward" + VALUES
)
NARROWED = (
    "Warning: a trial shows that the model's outputs are {what}, never beyond {bound:.3g}: their softmax is nearly the same for "
    "all classes, so ranks and maps hold, and probabilities say little; multiply them by the scale that it was trained with"
    + VALUES
)
CLOSENESS = "A trial shows that the model gives negative distances: probabilities are their softmax, as of any logits"

LOG = "log of "
WHOLES = {"sigmoid": (1.0, PERCENT), "softmax": (1.0, PERCENT), "log_softmax": (1.0,), LOG + "softmax": (1.0,)}
"""By what the values of a function may be multiplied, so that probabilities can be read."""
KINDS = {
    "sigmoid": "sigmoid",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "log_sigmoid_forward": "log_sigmoid",
    "tanh": "tanh",
    "_cdist_forward": "distance",
    "_euclidean_dist": "distance",
    "sort": "sorted",
    "topk": "sorted",
}
"""What outputs may be made of, by the names of torch's operations."""
DIFFERENCES = frozenset({"sub", "rsub"})
SQUARES = frozenset({"pow", "abs", "mul", "norm", "linalg_vector_norm"})
"""Operations that make of differences what adds up to a distance."""
SUMS = frozenset({"sum", "mean", "sqrt", "add", "clamp", "clamp_min"})
PRODUCTS = frozenset({"mm", "addmm", "bmm", "mul"})
LATEST = 4
"""So many differences, squares and products of vectors of length 1 are kept: what is made of them follows at once."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that sees what a model's outputs may be made of, in every kind of model.

    Args:
        numel: how many outputs all pictures have.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return that torch need not keep its compiler out of this class: that alone would import it, 150 MB and two seconds."""
        return False

    def __init__(self, numel: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numel = numel
        self._kept: dict[str, list[Tensor]] = {"difference": [], "distance": [], "cosine": []}
        self.seen: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation, and keep what outputs may be made of."""
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, Tensor) and first.is_floating_point() and first.layout == torch.strided:
            name = func.overloadpacket.__name__
            kind = KINDS.get(name) or self._trace(name, [each for each in args if isinstance(each, Tensor)], first)
            if kind and first.numel() == self._numel:
                self.seen.append((kind, first.detach().clone()))
        return result

    def _trace(self, name: str, given: list[Tensor], result: Tensor) -> str:
        """Return what is made of earlier results by an operation that by itself says nothing; "" where that is nothing."""
        squared = name in SQUARES and self._holds(given, "difference", "distance") and bool(result.min() >= 0)
        units = name in PRODUCTS and len(given) > 1 and all(map(_has_length_1, given[-2:]))
        kind = ""
        if name in DIFFERENCES:
            kind = "difference"
        elif squared or (name in SUMS and self._holds(given, "distance")):
            kind = "distance"
        elif units or (name == "sum" and self._holds(given, "cosine")):
            kind = "cosine"
        if kind:
            self._kept[kind] = [*self._kept[kind][1 - LATEST :], result]
        return kind

    def _holds(self, given: list[Tensor], *kinds: str) -> bool:
        return any(each is kept for each in given for kind in kinds for kept in self._kept[kind])

    def explain(self, values: Tensor) -> list[Made]:
        """Return from what the values `[N, K]` may be made, the last first."""
        found = []
        for place, (seen, result) in reversed(list(enumerate(self.seen))):
            for kind in (seen, LOG + seen) if seen in ("sigmoid", "softmax") else (seen,):
                made = _transform(kind, result).flatten()
                fits = [(1.0, 0.0)] if kind in WHOLES and _alike(made, values.flatten()) else _fit(made, values)
                found += [Made(place, kind, *fit) for fit in fits]
        return found


@dataclass(frozen=True)
class Made:
    """What outputs are made of: `slope * result + offset` of the result of a function, or of its logarithm.

    Attributes:
        place: which of the functions seen it is.
    """

    place: int
    kind: str
    slope: float
    offset: float

    def holds(self, watch: Watch, values: Tensor) -> bool:
        """Return whether another pass shows the same."""
        kind, result = watch.seen[self.place] if self.place < len(watch.seen) else ("", values)
        made = self.slope * _transform(self.kind, result) + self.offset
        return self.kind.endswith(kind) and made.numel() == values.numel() and _alike(made.reshape(values.shape), values)

    @property
    def plain(self) -> bool:
        """Whether nothing is added."""
        return abs(self.offset) <= ROUNDED * abs(self.slope)

    @property
    def reads(self) -> bool:
        """Whether outputs that are so made are read as the probabilities that they are, whatever else they lie on a line with.

        Near 1 a probability does with its logarithm.
        """
        return self.kind in WHOLES and self.plain and any(abs(self.slope - each) <= ROUNDED * each for each in WHOLES[self.kind])

    def judge(self) -> str:
        """Return what the user should hear; "" for what is read as it is meant.

        Raises:
            ConfigError: it cannot be read.
        """
        if self.kind == "distance":
            if self.slope > 0:
                raise ConfigError(DISTANCE)
            return CLOSENESS
        if self.kind == "sorted":
            raise ConfigError(SORTED)
        if self.kind in ("log_sigmoid", LOG + "sigmoid"):
            raise ConfigError(LOG_SIGMOID)
        if self.kind in ("tanh", "cosine") and abs(self.slope) <= NARROW:
            what = "cosines" if self.kind == "cosine" else "a tanh"
            return NARROWED.format(what=what, bound=abs(self.slope) + abs(self.offset))
        if self.kind in WHOLES and not self.reads:
            offset = "" if self.plain else f" {'+' if self.offset > 0 else '-'} {abs(self.offset):.4g}"
            kind = self.kind.replace("_", "-")
            raise ConfigError(RANGED.format(slope=self.slope, ending=kind, offset=offset))
        return ""


def _transform(kind: str, result: Tensor) -> Tensor:
    return result.double().log() if kind.startswith(LOG) else result.double()


def _fit(result: Tensor, values: Tensor) -> list[tuple[float, float]]:
    """Return the line on which the values lie over a function's result, if they do: its slope and its offset."""
    x, y = result.double().flatten(), values.detach().double().flatten()
    if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()) or float(x.std()) <= 1e-6 * float(x.abs().max()):
        return []
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    offset = float(y.mean() - slope * x.mean())
    return [(slope, offset)] if slope and _alike(slope * x + offset, y) else []


def _alike(one: Tensor, other: Tensor) -> bool:
    other = other.double()
    return bool((one - other).abs().max() <= ROUNDED * other.abs().max())


def _has_length_1(rows: Tensor) -> bool:
    """Return whether all vectors along the last axis, or all along the first, have length 1."""
    if rows.ndim < 2:
        return False
    lengths = [rows.detach().float().norm(dim=axis) for axis in (-1, 0)]
    return any(bool((each - 1).abs().max() < ROUNDED) for each in lengths)
