"""The survey and the default layer of a model of any kind."""

from __future__ import annotations

from torch import Tensor

from camserve.capture.choose.layer import choose_layer
from camserve.capture.models.kinds import open_model, survey_model
from camserve.capture.survey.layers import Survey


def survey(model: object, pictures: Tensor, token_grid: tuple[int, ...] | None = None) -> Survey:
    """Open a model of any kind, run it over `pictures` `[N, 3, H, W]` and describe every layer."""
    return survey_model(open_model(model, pictures), pictures, token_grid)


def default_layer(model: object, pictures: Tensor, known: Survey | None = None) -> tuple[str, str]:
    """Choose the layer of a model of any kind that is explained where none is named; return it, and why.

    Args:
        known: a survey to choose from in place of the model's own.

    Raises:
        ConfigError: it has no layer with a map that its prediction depends on.
    """
    classifier = open_model(model, pictures)
    own = survey_model(classifier, pictures)
    return choose_layer(classifier, pictures, known or own)
