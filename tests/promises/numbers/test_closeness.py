"""What float32 may differ by: sums stay within it in any order, and what is wrong does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.comparison.closeness import assert_close, error_of_sum, exact, unscaled
from tests.support.models import nets
from torch import nn

from camserve.explain import methods

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("terms", [1, 27, 192, 4608])
@pytest.mark.parametrize("signed", [False, True])
def test_sums_stay_within_their_error(terms: int, signed: bool) -> None:
    """Added one by one, which is worse than any kernel, and backwards; and the bound is not far above them."""
    drawn = np.random.default_rng(0)
    products = (drawn.standard_normal((400, terms)) if signed else drawn.random((400, terms))).astype(np.float32)
    ends = [np.cumsum(each, axis=1, dtype=np.float32)[:, -1].astype(np.float64) for each in (products, products[:, ::-1])]
    largest = np.abs(products).astype(np.float64).sum(1).max()
    worst = np.abs(ends[0] - ends[1]).max()
    assert worst <= error_of_sum(terms) * largest
    assert error_of_sum(terms) < 1e-4


def test_a_map_is_compared_before_it_is_scaled() -> None:
    """An even map's heatmap moves by much where the map hardly does; a heatmap that does not reach from 0 to 1 is none."""
    even = np.array([[1.0, 1.00002], [1.0001, 1.00004]])
    moved = even + np.array([[0, 1e-6], [0, 0]])
    heatmaps, limits = (
        [(each - each.min()) / np.ptp(each) for each in (even, moved)],
        [(each.min(), each.max()) for each in (even, moved)],
    )
    assert np.abs(heatmaps[0] - heatmaps[1]).max() > 9e-3
    assert_close(unscaled(heatmaps[0], limits[0]), unscaled(heatmaps[1], limits[1]), 1.1e-6)
    with pytest.raises(AssertionError):
        assert_close(unscaled(heatmaps[0], limits[0]), unscaled(heatmaps[1], limits[1]), 0.9e-6)
    with pytest.raises(AssertionError):
        unscaled(heatmaps[0] / 2, limits[0])
    with pytest.raises(AssertionError):
        assert_close(even, even[:1], 1)


def narrow(spread: float) -> nn.Module:
    """Its norm divides by `spread` what varies that little."""
    torch.manual_seed(0)
    model = nets.Pooled().eval()
    with torch.no_grad():
        model.get_parameter("stem.0.weight").mul_(spread)
        model.get_parameter("stem.0.bias").fill_(1)
        model.get_buffer("stem.1.running_mean").fill_(1)
        model.get_buffer("stem.1.running_var").fill_(spread**2)
    vars(model.get_submodule("stem.1"))["eps"] = 0
    return model


def test_an_ill_conditioned_network_is_allowed_what_its_norms_multiply() -> None:
    """And float32 takes some of it: the error is that of the model's own, in either case."""
    errors = []
    for spread in (1.0, 1e-3):
        model, picture = narrow(spread), nets.pictures(1)[0]
        wanted = exact(model, "features", picture, 2)
        gradient = model.get_parameter("fc.weight")[2, :, None, None] / 64
        activation = model.get_submodule("features")(model.get_submodule("stem")(picture[None])).detach()
        found = methods.gradcam_plus_plus(activation, gradient[None].detach())[0]
        assert_close(found, wanted.map, wanted.map_error)
        assert abs(model(picture[None]).softmax(1).detach().numpy() - wanted.probabilities).max() <= wanted.probability_error
        errors.append(wanted.map_error)
        assert np.abs(found.numpy() - wanted.map).max() > wanted.map_error * wanted.map.max() / 1000
    assert errors[0] < 1e-5
    assert 100 * errors[0] < errors[1] < 1e-2
