"""Reads the class scores of what a model gives: which of its outputs they are, and what is differentiated."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from camserve.capture.survey.endings import Ending, EndingWatch, invert_ending
from camserve.capture.survey.outputs import Path, name_path, read_scores

Kind = Literal["softmax", "sigmoid", "none"]
"""What a model's scores are: of one class among several, of several labels at once, or values."""


class Scores(NamedTuple):
    """The scores of N pictures.

    Attributes:
        logits: what explanations are of, `[N, K]`.
        values: what the model itself gives, `[N, K]`, or `[N, 1]` where one logit makes two classes.
    """

    logits: Tensor
    values: Tensor


@dataclass(frozen=True)
class OutputReader:
    """How the scores of a model are read.

    Attributes:
        kind: what they are.
        path: where they lie in its output; None: they are the first that there are.
        width: how many the model gives for each picture; None: not known yet.
        binary: the one that it gives is a logit `z` of two classes, whose logits are `-z` and `z`.
        ending: the model's last function.
        reached: what goes into that can be watched; otherwise the function is inverted.
        scale: by what that function's values are multiplied, as 100 where the model gives percentages.
    """

    kind: Kind = "softmax"
    path: Path | None = None
    width: int | None = None
    binary: bool = False
    ending: Ending = ""
    reached: bool = False
    scale: float = 1.0

    def watch(self, count: int) -> AbstractContextManager[EndingWatch | None]:
        """Return the context manager in which the model is run over `count` pictures, where logits are needed."""
        return EndingWatch(count * self.width) if self.reached and self.width else nullcontext()

    def read(self, output: Any, count: int, watch: EndingWatch | None = None) -> Scores:
        """Read the scores of `count` pictures.

        Args:
            watch: saw the run; None: of a model that ends in a function, the logits are its own values.

        Raises:
            ValueError: there are none, or not a row for each picture.
            RuntimeError: the model's last function was another one than when it was loaded.
        """
        values = read_scores(output, count, self.path, self.width)
        return self.complete(values, None if watch is None else self._look_behind(values, watch))

    def describe(self) -> str:
        """Say in one line what is unlike logits of several classes in a model's only output; "" where nothing is."""
        parts = {"output": name_path(self.path or ()), "ending": self.ending}
        parts["times"] = f"{self.scale:g}" if self.scale != 1 else ""
        parts["scores"] = "one_logit" if self.binary else "" if self.kind == "softmax" else self.kind
        return " ".join(f"{name}={value}" for name, value in parts.items() if value)

    def probabilities(self, values: Tensor) -> Tensor:
        """Return each class's probability `[N, K]`, of the model's own values; of the kind `none`, the values themselves."""
        values = self.unscale(values)
        if self.binary:
            positive = values if self.ending else torch.sigmoid(values)
            return torch.cat([1 - values if self.ending else torch.sigmoid(-values), positive], 1)
        if self.kind == "none" or self.ending in ("sigmoid", "softmax"):
            return values
        return torch.sigmoid(values) if self.kind == "sigmoid" else torch.softmax(values, 1)

    def compare(self, output: Any, count: int) -> Tensor:
        """Read what two ways of running the model over `count` pictures are compared by, `[N, K]`, float64.

        These are the probabilities, or values as shares of the largest.
        """
        values = read_scores(output, count, self.path, self.width).double()
        return values / values.abs().max() if self.kind == "none" else self.probabilities(values)

    def complete(self, values: Tensor, logits: Tensor | None = None) -> Scores:
        """Return the scores, of the model's own values, and of the logits, where these are others."""
        if logits is None:
            logits = invert_ending(self.ending, self.unscale(values)) if self.ending and not self.reached else values
        if self.binary:
            logits = torch.cat([-logits, logits], 1)
        return Scores(logits, values)

    def unscale(self, values: Tensor) -> Tensor:
        """Return what the model's last function gave, of the model's own values."""
        return values if self.scale == 1 else values / self.scale

    def _look_behind(self, values: Tensor, watch: EndingWatch) -> Tensor:
        found = watch.find(self.unscale(values))
        if found is None or found[0] != self.ending:
            raise RuntimeError(f"the model did not end in a {self.ending} in this pass, as it did when it was loaded")
        return found[1]


FIRST = OutputReader()
"""Reads the first scores that there are, as logits of one class among several."""
