"""The survey and the default layer of a model of any kind, as packaging finds them."""

from __future__ import annotations

from torch import Tensor

from camserve.capture.choose.layer import choose_layer
from camserve.capture.models.kinds import open_model, survey_model
from camserve.capture.survey.layers import Survey


def survey(model: object, pictures: Tensor, token_grid: tuple[int, int] | None = None) -> Survey:
    """Runs a model of any kind (see `open_model`) over `pictures` and describes every layer; its parameters are then frozen."""
    return survey_model(open_model(model, pictures), pictures, token_grid)


def default_layer(model: object, pictures: Tensor, found: Survey | None = None) -> tuple[str, str]:
    """The layer of a model of any kind that is explained where none is named, and why.

    Raises:
        ConfigError: it has no layer with a map that its prediction depends on.
    """
    own = open_model(model, pictures)
    again = survey_model(own, pictures)
    return choose_layer(own, pictures, found or again)
