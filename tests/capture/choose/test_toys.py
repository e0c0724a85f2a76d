"""Small networks, trained here: today's default layer and method show more than those of the rule before."""

from __future__ import annotations

import pytest
from benchmarks.layers import nets, scenes, training
from benchmarks.layers.measure import Measured, measure

from camserve.capture.choose.bypass import MAX_BYPASS

pytestmark = [pytest.mark.slow, pytest.mark.numeric]

MARGIN = 0.03
"""How much less a default may show: two seeds of one network differ by more."""

FAMILIES = {"CNN with a gate": (1, "gradcam++"), "CNN of branches": (1, "hirescam"), "ViT, class token": (3, "hirescam")}
"""Epochs that each takes to learn, and the method that is its default."""


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> tuple[Measured, str]:
    """What a trained network's layers show, and its default method."""
    epochs, method = FAMILIES[request.param]
    model = training.train(nets.FAMILIES[request.param], epochs).model
    return measure(model, scenes.draw(128, seed=3), scenes.draw_two(128, seed=5)), method


def test_defaults_hold_the_scores_and_tell_objects_apart(trained: tuple[Measured, str]) -> None:
    """Nothing goes past the layer; and of two objects the map lies on the one that is asked for more than the map that was the
    default: of the last layer, by Grad-CAM++."""
    found, method = trained
    layers = {layer.name: layer for layer in found.layers}
    default, before = layers[found.default], layers[found.last].shown["gradcam++"]
    assert default.bypass is not None
    assert default.bypass <= MAX_BYPASS
    shown = default.shown[method]
    assert shown.apart >= before.apart - MARGIN
    assert shown.share >= before.share - MARGIN
    assert shown.apart >= default.shown["gradcam++"].apart - MARGIN
    block = layers.get("blocks.1")  # which nothing goes past either, and where HiResCAM's sums cancel
    assert block is None or shown.apart >= block.shown["gradcam"].apart + MARGIN
