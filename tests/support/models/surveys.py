"""The survey and the default layer of a model of any kind, as packaging finds them."""

from __future__ import annotations

from torch import Tensor

from camserve.capture.choose.rule import pick
from camserve.capture.models.kinds import looked_at, opened
from camserve.capture.survey.layers import Survey


def survey(model: object, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
    """Runs a model of any kind (see `opened`) over `pictures` and describes every layer; its parameters are then frozen."""
    return looked_at(opened(model, pictures), pictures, token_grid)


def default_layer(model: object, pictures: Tensor, found: Survey | None = None) -> tuple[str, str]:
    """The layer of a model of any kind that is explained where none is named, and why.

    Raises:
        ConfigError: it has no layer with a map that its prediction depends on.
    """
    own = opened(model, pictures)
    again = looked_at(own, pictures)
    return pick(own, pictures, found or again)
