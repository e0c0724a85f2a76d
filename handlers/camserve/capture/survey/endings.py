"""The function in which a model ends, a sigmoid or a softmax, and what goes into it: the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Ending = Literal["", "sigmoid", "softmax", "log_softmax"]
"""A model's last function; "" where it gives logits. A log-softmax's values serve as logits: their softmax is the same."""

FUNCTIONS: Mapping[str, Ending] = MappingProxyType(
    {"sigmoid": "sigmoid", "special_expit": "sigmoid", "softmax": "softmax", "special_softmax": "softmax"}
)
"""torch's functions, methods and operations by their names."""

ROUNDED = 1e-3
"""How far probabilities may lie from adding up to 1, in half precision too, and from those that a model clamps to its liking."""

PERCENT = 100.0
"""What a model's probabilities are multiplied by where it gives percentages."""

FLAT = 1e-6
"""Scores whose standard deviation over pictures is no more are the same for all."""

LOWEST, HIGHEST = 1e-38, 1 - 6e-8
"""Between these a probability has a logit in float32; its gradient is 0 beyond."""


class EndingWatch(TorchFunctionMode):
    """Context manager that sees what goes into sigmoids and softmaxes in this thread, and what comes out.

    Modules, functions and methods of eager models and of exported programs are seen alike. TorchScript is not.

    Args:
        numel: how many scores all pictures have: what has another size is let go.
    """

    def __init__(self, numel: int) -> None:
        super().__init__()
        self._numel = numel
        self._calls: list[tuple[Ending, Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch's, and keep what matters of it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        ending = FUNCTIONS.get(getattr(func, "__name__", "").partition(".")[0])
        if ending and isinstance(result, Tensor) and result.numel() == self._numel:
            given = args[0] if args else kwargs.get("input", kwargs.get("self"))
            if isinstance(given, Tensor):
                self._calls.append((ending, given, result))
        return result

    def find(self, scores: Tensor) -> tuple[Ending, Tensor] | None:
        """Return the function that gave the scores `[N, K]`, and its input in their shape; None: none of those seen did."""
        for ending, given, result in reversed(self._calls):
            if torch.allclose(result.detach().reshape(scores.shape).to(scores.dtype), scores.detach(), rtol=0, atol=ROUNDED):
                return ending, given.reshape(scores.shape)
        return None


class Guess(NamedTuple):
    """What the scores of some pictures may be.

    Attributes:
        ending: the function that may have made them; "" where they look like logits.
        scale: by what its values are multiplied.
        side: of scores that look like logits: -1 where none is above 0, 1 where none is below, or 0.
    """

    ending: Ending = ""
    scale: float = 1.0
    side: int = 0


def are_flat(scores: Tensor) -> bool:
    """Return whether scores `[N, K]` say nothing, the same for all pictures: of a head of zeros, or a saturated function."""
    return bool(torch.isfinite(scores).all()) and float(scores.float().std(0).max()) <= FLAT


def guess_ending(scores: Tensor) -> Guess:
    """Guess a model's last function from scores `[N, K]` of several pictures.

    Between 0 and 1, or 0 and 100, they may still be logits, by chance: "sigmoid" is to be tried further, and so is `side`.
    """
    scores = scores.float()
    if not bool(torch.isfinite(scores).all()) or are_flat(scores):
        return Guess()
    low, high = float(scores.min()), float(scores.max())
    several = scores.shape[1] > 1
    if low >= 0:
        sums = scores.double().sum(1)
        whole = float(sums.mean())
        if several and bool((sums - whole).abs().max() < ROUNDED * whole):
            return Guess("softmax", next((each for each in (1.0, PERCENT) if abs(whole - each) < ROUNDED * each), whole))
        return Guess("sigmoid") if high <= 1 else Guess("sigmoid", PERCENT) if high <= PERCENT else Guess(side=1)
    if several and high <= 0 and bool(scores.logsumexp(1).abs().max() < ROUNDED):
        return Guess("log_softmax")
    return Guess(side=-1 if high <= 0 else 0)


def invert_ending(ending: Ending, scores: Tensor) -> Tensor:
    """Return logits `[N, K]` of a model whose last function cannot be looked behind.

    Of a sigmoid these are the logits. Of a softmax they are `log p`, the logits but for what is common to all of a picture.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if ending == "sigmoid":
        return torch.logit(scores.clamp(LOWEST, HIGHEST))
    return scores.clamp_min(LOWEST).log()
