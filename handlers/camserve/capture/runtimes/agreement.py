"""Whether a runtime gives what eager torch gives: scores, activations, gradients and maps of the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from camserve.capture.base import Capture, Captured
from camserve.capture.survey.reader import OutputReader

SCORES_EQUAL = 1e-5
"""Largest difference of a probability, or of a value as a share of the largest: what clients are promised."""

MAPS_EQUAL = 1e-4
"""Largest difference of a heatmap, from 0 to 1: what clients are promised."""

COUNTS = (1, 3)
"""Pictures of the passes that are compared: of a graph that was traced with two, other numbers show what was fixed."""


@dataclass(frozen=True)
class Tolerance:
    """How far answers may lie apart.

    Attributes:
        scores: of probabilities, or of values as shares of the largest.
        maps: of activations and gradients as shares of the largest, and of heatmaps.
    """

    scores: float = SCORES_EQUAL
    maps: float = MAPS_EQUAL


EQUAL = Tolerance()

EVEN = 1e-3
"""A map whose values differ by less, as a share of its largest, is not scaled for the comparison: that would compare rounding."""


Draw = Callable[[Tensor, Tensor], Tensor]
"""Makes unscaled maps `[M, h, w]` of activations `[M, C, h, w]` and gradients of that shape, or `[M, C, 1, 1]`."""


def draw_plainly(activation: Tensor, gradient: Tensor) -> Tensor:
    """Draw maps without a method: what is positive, where its gradient is."""
    return (activation.relu() * gradient.relu()).sum(1)


def find_faults(
    one: Capture,
    other: Capture,
    pictures: Tensor,
    layers: Collection[str],
    *,
    reader: OutputReader,
    draw: Draw = draw_plainly,
    within: Tolerance = EQUAL,
) -> dict[str, str]:
    """Compare two captures of a model; return where the `other` differs.

    Args:
        pictures: `[N, C, H, W]`, N at least 3.
        layers: to compare at, beside the scores.
        reader: how the model's scores are read.
        draw: makes the maps.
        within: how far they may lie apart.

    Returns:
        What differs, in words, by the layer's name; under "" what differs of the scores.
    """
    faults: dict[str, str] = {}
    for count in COUNTS:
        plain = other.forward(pictures[:count], ())
        for layer in ("", *layers):
            given = pictures[:count]
            expected = one.forward(given, [layer] if layer else [])
            got = other.forward(given, [layer]) if layer else plain
            fault = _compare_scores(expected, got, reader, within) or (
                _compare_layer(expected, got, layer, draw, within) if layer else ""
            )
            if fault:
                faults.setdefault(layer, fault)
    return faults


def _compare_scores(expected: Captured, got: Captured, reader: OutputReader, within: Tolerance) -> str:
    one, other = (comparable(each.values, reader) for each in (expected, got))
    if one.shape != other.shape:
        return f"scores of the shape {list(other.shape)}, not {list(one.shape)}"
    difference = float((one - other).abs().max())
    return "" if difference <= within.scores else f"probabilities differ by {difference:.1g}"


def comparable(values: Tensor, reader: OutputReader) -> Tensor:
    """Return the probabilities; of values, shares of the largest. In float64."""
    values = values.double()
    return values / values.abs().max() if reader.kind == "none" else reader.probabilities(values)


def _compare_layer(expected: Captured, got: Captured, layer: str, draw: Draw, within: Tolerance) -> str:
    activations = [each.activation(layer).double() for each in (expected, got)]
    if activations[0].shape != activations[1].shape:
        return f"its activation has the shape {list(activations[1].shape)}, not {list(activations[0].shape)}"
    rows = torch.arange(len(activations[0]), device=activations[0].device)
    targets = expected.logits.argmax(1)
    gradients = [each.gradients(layer, rows, targets).double() for each in (expected, got)]
    for name, (one, other) in {"activation": activations, "gradient": gradients}.items():
        if not _share(one, other) <= within.maps:
            return f"its {name} differs by {_share(one, other):.1g} of the largest"
    maps = [draw(activation.float(), gradient.float()) for activation, gradient in zip(activations, gradients, strict=True)]
    difference = float(max(_difference(one, other) for one, other in zip(*maps, strict=True)))
    return "" if difference <= within.maps else f"heatmaps differ by {difference:.1g}"


def _share(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value; not a number where something is not finite."""
    largest = float(one.abs().max())
    return float((one - other).abs().max()) / largest if largest else float(other.abs().max())


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two maps `[h, w]`, as a share of the first one's range."""
    high, low = float(one.max()), float(one.min())
    scale = high - low if high - low > EVEN * high else high
    return float((one - other).abs().max()) / scale if scale else float(other.abs().max())
