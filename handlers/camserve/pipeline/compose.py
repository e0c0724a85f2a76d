"""What the model saw in one picture becomes that picture's answer."""

from __future__ import annotations

from camserve.core import geometry
from camserve.core.geometry import Rect
from camserve.core.labels import Labels
from camserve.core.messages import Answer, Explanation, ImageInfo, Options, Score
from camserve.explain.explainer import Map, Seen


def answered(seen: Seen, size: tuple[int, int] | None, view: Rect | None, options: Options, labels: Labels) -> Answer:
    """The answer, with nothing drawn yet.

    Args:
        size: (width, height) of the picture; None: there is none, or it is not known.
        view: the part of it that the model saw; None: not known.
    """
    info = None if size is None else ImageInfo(*size, view)
    classes = tuple(Score(index, labels[index], probability) for index, probability in seen.classes)
    explanations = tuple(_explanation(found, info, labels) for found in seen.maps)
    return Answer(classes, explanations, info, options.method, options.layer)


def _explanation(found: Map, info: ImageInfo | None, labels: Labels) -> Explanation:
    region = None
    if info is not None and info.view is not None:
        region = geometry.region(found.heatmap, info.view, info.width, info.height)
    label = labels[found.target]
    return Explanation(found.target, label, found.probability, found.heatmap, found.range, region, found.warnings)
