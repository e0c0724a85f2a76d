"""What an archive offers to its clients."""

from __future__ import annotations

from dataclasses import dataclass, field

from camserve.core.config import METHODS, Config
from camserve.core.labels import Labels
from camserve.core.messages import ModelInfo


@dataclass(frozen=True)
class Served:
    """What an archive offers: all that parsing requests, replying and the metadata need to know of it.

    Attributes:
        config: its settings.
        labels: of the model's classes.
        layers: those that may be asked for; the first is the default.
        model: its name, version and weights.
        listed: how many classes a prediction lists; None where a handler's own `postprocess` makes the predictions.
        size: (height, width) of the model's input; None where that is not known.
        scores: what the scores are: `softmax`, of one class among several; `sigmoid`, of several labels at once; `none`, values.
        binary: one logit makes two classes.
    """

    config: Config
    labels: Labels
    layers: tuple[str, ...]
    model: ModelInfo = field(default_factory=lambda: ModelInfo("model", "", ""))
    listed: int | None = 5
    size: tuple[int, int] | None = None
    scores: str = "softmax"
    binary: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that may be asked for: values are no rivals, so none of them contrasts with others."""
        return tuple(name for name in METHODS if self.scores != "none" or name != "contrast")

    @property
    def by_threshold(self) -> bool:
        """Whether the threshold says which classes are explained where none is asked for."""
        return self.scores == "sigmoid" or self.binary
