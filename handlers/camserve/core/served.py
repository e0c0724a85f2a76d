"""What an archive offers to its clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from camserve.core.config import METHODS, REFINECAM, Config
from camserve.core.labels import Labels
from camserve.core.messages import Layer, ModelInfo


@dataclass(frozen=True)
class Measurement:
    """What a report in the archive says of layers and methods that were measured on pictures.

    Attributes:
        report: `sha256:` and the digest of its file.
        made: when, ISO 8601 in UTC; "" where an earlier release wrote it.
        pictures: how many.
        chosen: the layer and the method that it speaks for.
        rows: of each layer and method `out`, whether its maps stay alike under any weights, so that it could not be chosen; and
            `score` and `support`, each `mean`, `low` and `high` (95 % interval).
        mismatch: why it does not hold for what is served; "" where it does.
    """

    report: str
    made: str
    pictures: int
    chosen: tuple[str, str]
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    mismatch: str = ""

    def describe(self, layer: str, method: str) -> dict[str, Any] | None:
        """Describe what was measured of a layer and a method, as answers have it; None where nothing was that holds here."""
        row = self.rows.get((layer, method))
        if row is None or self.mismatch:
            return None
        told = {"chosen": (layer, method) == self.chosen, "pictures": self.pictures, **row}
        return {**told, "made": self.made, "report": self.report[:19]}


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
        measurement: of layers and methods; None where the archive has no report of one.
        together: the layers that a method may take together, in the order in which they run; none, or two at least.
    """

    config: Config
    labels: Labels
    layers: tuple[str, ...]
    model: ModelInfo = field(default_factory=lambda: ModelInfo("model", "", ""))
    listed: int | None = 5
    size: tuple[int, int] | None = None
    scores: str = "softmax"
    binary: bool = False
    measurement: Measurement | None = None
    together: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that may be asked for: values are no rivals, so none of them contrasts with others."""
        several = (REFINECAM,) if self.together else ()
        return tuple(name for name in (*METHODS, *several) if self.scores != "none" or name not in ("contrast", REFINECAM))

    @property
    def default_layer(self) -> Layer:
        """The layer, or the layers, that the archive's method takes."""
        return self.together if self.config.method == REFINECAM else self.layers[0]

    @property
    def by_threshold(self) -> bool:
        """Whether the threshold says which classes are explained where none is asked for."""
        return self.scores == "sigmoid" or self.binary
