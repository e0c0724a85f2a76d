"""Whether the maps of the real model tell the truth: a quick form of `benchmarks/fidelity/run.py`, with gates that a platform's noise
does not reach."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from benchmarks.fidelity import candidates, games
from benchmarks.fidelity.scenes import LAYER, SHIPPED, Classifier, Pixels, Seen, mosaic, picture, prepared
from tests.support.comparison import oracle

from camserve.capture import open_model
from camserve.explain.methods import METHODS

pytestmark = pytest.mark.numeric

STEPS = 4
"""Of insertion and deletion; the benchmark takes three times as many."""


@functools.cache
def classifier() -> Classifier:
    """The demo's network."""
    torch.set_num_threads(1)
    return Classifier()


@functools.cache
def of_all_stages() -> Classifier:
    """The same, captured at each stage."""
    return Classifier(classifier().network, further=candidates.STAGES[:-1])


@functools.cache
def seen_of(name: str) -> Seen:
    """A shipped photograph as the demo's network sees it."""
    return classifier().seen(picture(name))


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
        pixels, seen = picture(name), seen_of(name)
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
            games.likeness(made(seen_of(name), target), made(other.seen(picture(name)), target))
            for name, target in SHIPPED.items()
        ]
    assert np.mean(likenesses["gradcam"]) <= 0.4
    assert np.mean(likenesses["gradcam++"]) <= 0.8


@pytest.mark.parametrize("name", list(METHODS))
def test_maps_of_the_real_model_are_the_papers(name: str) -> None:
    """Served maps, by the closed form, against the literal equations in float64 on autograd's gradients: within 1e-5 of [0, 1]."""
    pixels, target = picture("coffee"), SHIPPED["coffee"]
    seen = seen_of("coffee")
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


@pytest.mark.parametrize(("candidate", "of"), [(candidates.fused, "fused"), (candidates.refined, "refined")])
def test_several_layers_in_one_by_hand(candidate: Callable[[str], games.Candidate], of: str) -> None:
    """LayerCAM's maps over their maxima at the finest size: the largest behind a tanh of all but the last, or the product."""
    pixels, target = picture("coffee"), SHIPPED["coffee"]
    seen = of_all_stages().seen(pixels)
    drawn = []
    for layer in candidates.STAGES:
        activation, gradient = (
            each[0].double().numpy() for each in (seen.captured.activation(layer), seen.gradient(target, layer))
        )
        exact = oracle.MAPS["layercam"](activation, np.broadcast_to(gradient, activation.shape))
        drawn.append(cv2.resize(exact / exact.max(), (28, 28), interpolation=cv2.INTER_LINEAR))
    earlier = [np.tanh(2 * each) / np.tanh(2) for each in drawn[:-1]]
    wanted = np.max([*earlier, drawn[-1]], 0) if of == "fused" else np.prod(drawn, 0)

    found = candidate("layercam")(seen, target).numpy()

    assert np.abs(found - wanted).max() <= 1e-5 * wanted.max()


@pytest.mark.parametrize("shapley", [False, True])
@pytest.mark.parametrize("cells", [1, 4])
def test_shapley_cam_by_autograd(cells: int, shapley: bool) -> None:
    """Its weights are the gradient of y + log p, less half the second derivatives times the activation, in float64."""
    target = SHIPPED["cat"]
    seen = classifier().seen(picture("cat") if cells == 1 else mosaic([picture(name) for name in list(SHIPPED)[:4]]))
    activation = seen.activation[0].double().requires_grad_()
    rows = candidates.all_gradients(seen)
    for each in (target, 0):
        assert (rows[each, :, None, None] - seen.gradient(each)[0]).abs().max() <= 1e-5 * rows[each].abs().max()
    change = rows @ (activation - activation.detach()).sum((1, 2))
    logits = seen.logits.double() + change
    (gradient,) = torch.autograd.grad(logits[target] + logits.log_softmax(0)[target], activation, create_graph=True)
    (curved,) = torch.autograd.grad(gradient, activation, activation.detach())
    weights = (gradient - curved / 2 if shapley else gradient).mean((1, 2))
    exact = torch.einsum("c,chw->hw", weights, activation).relu().detach()

    found = candidates.rest(shapley=shapley)(seen, target).double()

    assert (found - exact).abs().max() <= 1e-5 * exact.max()


def test_maps_of_moved_pictures_are_put_back() -> None:
    """What moves with the picture lies where it was, but for the edges that were moved out of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def seen(moved: Pixels) -> torch.Tensor:
        return torch.from_numpy(moved[..., 0].reshape(16, 4, 16, 4).mean((1, 3)))

    for down, across, mirrored in candidates.moves():
        moved = candidates.shift(pixels[:, ::-1] if mirrored else pixels, 4 * down, 4 * across)
        found = candidates.put_back(seen(moved), -down, -across)
        found = found.flip(1) if mirrored else found
        assert torch.equal(found[2:-2, 2:-2], seen(pixels)[2:-2, 2:-2])
    assert len(set(candidates.moves())) > 4
