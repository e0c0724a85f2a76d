"""Whether the maps of the real model tell the truth: a quick form of `benchmarks/fidelity/run.py`, with gates that a platform's noise
does not reach."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from benchmarks.fidelity import games
from benchmarks.fidelity.scenes import LAYER, SHIPPED, Classifier, picture, prepared
from tests.support.comparison import oracle

from camserve.capture import open_model
from camserve.explain.methods import METHODS

pytestmark = pytest.mark.numeric

STEPS = 6
"""Of insertion and deletion; the benchmark takes twice as many."""


@functools.cache
def classifier() -> Classifier:
    """The demo's network."""
    torch.set_num_threads(1)
    return Classifier()


@pytest.fixture(scope="module")
def pointed() -> dict[str, list[tuple[float, bool]]]:
    """For each method and each class of each mosaic: the map's share in the right quarter, and whether its peak is there."""
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in METHODS}
    for seen, cell, target in games.grid_pointing(classifier(), SHIPPED):
        for name, values in found.items():
            made = games.method(name)(seen, target)
            values.append((games.share_in_cell(made, cell), games.peak_in_cell(made, cell)))
    return found


@pytest.mark.parametrize(
    ("name", "gate"),
    [("gradcam++", 0.4), ("layercam", 0.4), ("gradcam", 0.75), ("hirescam", 0.75), ("xgradcam", 0.75), ("contrast", 0.8)],
)
def test_grid_pointing(pointed: dict[str, list[tuple[float, bool]]], name: str, gate: float) -> None:
    """In a mosaic of four pictures a class's map points at its own: the peak always, the mean share by `gate` (chance 0.25)."""
    shares, peaks = zip(*pointed[name], strict=True)
    assert len(peaks) == 20
    assert all(peaks)
    assert np.mean(shares) >= gate


def test_the_brightest_pixels_decide() -> None:
    """Shown first they bring the class up, hidden first they take it away: more so than a random map's, or the middle's."""
    gains: dict[str, list[float]] = {"gradcam++": [], "centre": [], "noise": []}
    for seed, (name, target) in enumerate(SHIPPED.items()):
        pixels = picture(name)
        seen = classifier().seen(pixels)
        for label, made in (("gradcam++", games.method("gradcam++")), ("centre", games.centre), ("noise", games.noise(seed))):
            gains[label].append(games.insertion_less_deletion(classifier(), pixels, made(seen, target), target, STEPS))
    mean = {label: np.mean(values) for label, values in gains.items()}
    assert mean["gradcam++"] >= 0.42
    assert mean["gradcam++"] >= mean["noise"] + 0.15
    assert mean["gradcam++"] >= mean["centre"] + 0.05


def test_a_map_changes_with_the_classifier() -> None:
    """Under a classifier of random weights Grad-CAM's map is another one, and so is Grad-CAM++'s under a random top."""
    likenesses: dict[str, list[float]] = {}
    for label, top in (("gradcam", False), ("gradcam++", True)):
        made, other = games.method(label), classifier().randomised(top=top)
        likenesses[label] = [
            games.likeness(made(classifier().seen(picture(name)), target), made(other.seen(picture(name)), target))
            for name, target in SHIPPED.items()
        ]
    assert np.mean(likenesses["gradcam"]) <= 0.4
    assert np.mean(likenesses["gradcam++"]) <= 0.8


@pytest.mark.parametrize("name", list(METHODS))
def test_maps_of_the_real_model_are_the_papers(name: str) -> None:
    """Served maps, by the closed form, against the literal equations in float64 on autograd's gradients: within 1e-5 of [0, 1]."""
    pixels, target = picture("coffee"), SHIPPED["coffee"]
    seen = classifier().seen(pixels)
    network = open_model(classifier().network, prepared([pixels] * 2))
    site = network.survey(prepared([pixels] * 2)).site(LAYER)
    captured = network.capture({LAYER: site}).forward(prepared([pixels]), [LAYER])
    activation = captured.activation(LAYER)[0].numpy()
    row = torch.tensor([0])
    gradient, *contrasts = (
        captured.gradients(LAYER, row, torch.tensor([each]))[0].numpy() for each in [target, *seen.contrasts(target, 5)]
    )
    assert gradient.shape == activation.shape
    exact = oracle.MAPS[name](activation, gradient, *([contrasts] if METHODS[name].contrasts else []))
    found = games.method(name)(seen, target).numpy()
    assert np.abs(oracle.heatmap(found) - oracle.heatmap(exact)).max() <= 1e-5


def test_the_measures_by_hand() -> None:
    """Shares, peaks and likeness of small maps."""
    found = torch.tensor([[0.0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert [games.share_in_cell(found, cell) for cell in range(4)] == [0.75, 0, 0, 0.25]
    assert [games.peak_in_cell(found, cell) for cell in range(4)] == [True, False, False, False]
    one, other = torch.tensor([[1.0, 2.0, 2.0, 5.0]]), torch.tensor([[1.0, 3.0, 3.0, 4.0]])
    assert games.likeness(one, other) == pytest.approx(1)
    assert games.likeness(one, -other) == pytest.approx(-1)
    assert games.likeness(one, torch.ones(1, 4)) == 0
