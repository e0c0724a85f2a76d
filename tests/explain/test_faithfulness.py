"""How far a heatmap is borne out: which cells are hidden, what the model is asked, and the verdict."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.build import encoded, noise
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from camserve.core.messages import Call
from camserve.core.messages.checks import FILLS, SHARES, Check
from camserve.explain.faithfulness import BLUR, PASSES, judge, move, perturb, pick_cells, scatter
from camserve.pipeline.model import Model

SIDE, CELLS = 32, 8
STEPS: dict[str, Any] = {"resize": SIDE, "crop": SIDE, "layers": ["1"], "monitor": False}


class Corner(nn.Module):
    """Says how bright the upper left quarter of its input is, of which no other part matters."""

    def forward(self, activation: Tensor) -> Tensor:
        """Two logits; `[N, C, 8, 8]` comes in."""
        bright = activation[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([4 * bright, torch.zeros_like(bright)], 1)


def corner() -> nn.Sequential:
    """The corner's classifier: cells of four pixels."""
    pool = nn.AvgPool2d(4)
    return nn.Sequential(pool, nn.ReLU(), Corner()).eval()


@pytest.mark.parametrize(("share", "count"), [(0.1, 6), (0.2, 13), (0.4, 26), (1.0, 64), (0.001, 1)])
def test_the_brightest_cells_are_picked(share: float, count: int) -> None:
    """As many as the share says, rounded, and one at least; none that is not picked is brighter."""
    heatmap = np.random.default_rng(0).random((8, 8), np.float32)

    picked = pick_cells(heatmap, share)

    assert picked.sum() == count
    assert count == 64 or heatmap[picked].min() > heatmap[~picked].max()


def test_equal_cells_are_picked_in_their_order() -> None:
    """A flat map picks no cells by chance."""
    assert np.flatnonzero(pick_cells(np.ones((4, 5), np.float32), 0.2)).tolist() == [0, 1, 2, 3]


def test_other_cells_are_as_many_and_the_same_each_time() -> None:
    """A moved map's lie half the map away; random ones are a permutation that does not change between answers."""
    heatmap = np.zeros((6, 8), np.float32)
    heatmap[1, 2] = 1

    assert [np.argwhere(move(heatmap, way)).tolist() for way in range(3)] == [[[4, 6]], [[4, 2]], [[1, 6]]]
    assert sorted(scatter(heatmap, 1).ravel()) == sorted(heatmap.ravel())
    assert (scatter(heatmap, 1) == scatter(heatmap.copy(), 1)).all()


@pytest.mark.parametrize("size", [(32, 32), (30, 44)])
def test_the_model_is_asked_about_cells_as_the_map_lies(size: tuple[int, int]) -> None:
    """Hidden cells hold the fill and nothing else changes; shown ones are the picture in the fill. Sizes need not divide."""
    heatmap = np.random.default_rng(1).random((5, 7), np.float32)
    picture = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))

    asked = list(perturb(picture, heatmap))

    assert len(asked) == PASSES
    brightest = [pick_cells(heatmap, share) for share in SHARES]
    each = iter(asked)
    for fill in FILLS:
        hidden = next(each)
        if fill == "mean":
            assert torch.allclose(hidden, picture.mean((1, 2), keepdim=True).expand_as(picture))
        else:
            assert hidden.std() < picture.std() / 2
        others = [scatter(heatmap, way) if fill == "blur" else move(heatmap, way) for way in range(len(SHARES))]
        for mask in [*brightest, *map(pick_cells, others, SHARES)]:
            for shows in (False, True):
                got = next(each)
                for y in range(0, size[0], 3):
                    for x in range(0, size[1], 3):
                        inside = mask[(2 * y + 1) * 5 // (2 * size[0]), (2 * x + 1) * 7 // (2 * size[1])]
                        source = picture if inside == shows else hidden
                        assert torch.equal(got[:, y, x], source[:, y, x])


@pytest.mark.numeric
def test_the_blur_is_a_gaussian() -> None:
    """As torchvision's, for sizes that are odd, even, and smaller than its reach."""
    for size in ((32, 32), (31, 44), (5, 60)):
        picture = torch.randn(3, *size, generator=torch.Generator().manual_seed(3))
        sigma = max(size) / BLUR
        reach = [min(round(2 * sigma), side - 1) for side in size]

        hidden = next(iter(perturb(picture, np.ones((2, 2), np.float32))))

        wanted = gaussian_blur(picture[None].double(), [2 * reach[1] + 1, 2 * reach[0] + 1], [sigma, sigma])[0]
        assert hidden.numpy() == pytest.approx(wanted.float().numpy(), abs=1e-5)


def scores(whole: float, empty: float, ours: float, other: float) -> list[float]:
    """Of pictures whose brightest cells have the effect `ours`, and all others `other`; both fills alike."""

    def pair(effect: float) -> list[float]:
        return [whole - effect * (whole - empty), empty + effect * (whole - empty)]

    return 2 * [empty, *(len(SHARES) * pair(ours)), *(len(SHARES) * pair(other))]


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [(1.0, 0.2, "supported"), (0.35, 0.2, "weak"), (0.2, 0.2, "unsupported"), (0.1, 0.6, "unsupported")],
)
@pytest.mark.parametrize(("whole", "empty", "lowers"), [(0.9, 0.1, False), (-3.0, 5.0, True), (7.0, -1.0, False)])
def test_the_verdict_is_what_the_map_does_beyond_chance(
    ours: float, other: float, verdict: str, whole: float, empty: float, lowers: bool
) -> None:
    """In shares of what hiding everything does, whatever the scores' size; of what lowers a value, with its sign turned."""
    check = judge(whole, scores(whole, empty, ours, other), lowers=lowers)

    assert check.support == pytest.approx(ours - other)
    assert check.verdict == verdict
    assert check.empty == pytest.approx({"blur": empty, "mean": empty})


def test_where_hiding_everything_changes_nothing_no_map_is_supported() -> None:
    """The score does not come from what the picture shows."""
    check = judge(0.9, scores(0.9, 0.89, 1.0, 0.0))

    assert (check.verdict, check.support) == ("unsupported", 0.0)


def test_the_areas_are_those_of_the_curves() -> None:
    """Trapezoids over the shares from none to all, the mean over fills."""
    row = (0.6, 0.2, 0.5, 0.3, 0.1, 0.8, *(0.5,) * 6)
    check = judge(1.0, [0.0, *row, 0.2, *row])

    x = (0.0, 0.1, 0.2, 0.4, 1.0)
    deletion = [np.interp(np.linspace(0, 1, 100_001), x, (1.0, 0.6, 0.5, 0.1, empty)).mean() for empty in (0.0, 0.2)]
    insertion = [np.interp(np.linspace(0, 1, 100_001), x, (empty, 0.2, 0.3, 0.8, 1.0)).mean() for empty in (0.0, 0.2)]
    assert check.deletion == pytest.approx(np.mean(deletion), abs=1e-4)
    assert check.insertion == pytest.approx(np.mean(insertion), abs=1e-4)
    assert check.brightest.hidden["mean"] == (0.6, 0.5, 0.1)
    assert check.brightest.shown["blur"] == (0.2, 0.3, 0.8)


def bright_corner() -> np.ndarray[Any, Any]:
    """A picture whose upper left quarter is bright, with some texture."""
    picture = np.random.default_rng(2).integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
    picture[: SIDE // 2, : SIDE // 2] += 190
    return picture


def test_a_map_of_what_the_model_looks_at_is_supported() -> None:
    """The corner's classifier, through the library."""
    model = Model(corner(), labels=["corner", "other"], mean=[0.0] * 3, std=[1.0] * 3, **STEPS)

    (explanation,) = model.explain(bright_corner(), target="corner", check=True, method="layercam")

    check = explanation.check
    assert isinstance(check, Check)
    assert check.verdict == "supported"
    assert check.insertion > check.deletion
    assert model.explain(bright_corner())[0].check is None


def post(model: Model, body: dict[str, Any], **headers: str) -> Any:
    """The reply to an explanation's request, alone."""
    (reply,) = model.run([Call(True, headers, {"body": body})])
    return reply


def test_a_check_is_answered_alike_whatever_it_is_batched_with() -> None:
    """With neighbours of another size, and with others that are checked; each check has its own pictures."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8))
    model = Model(net, **{**STEPS, "resize": None, "crop": None}, max_batch=5)
    pictures = [bytes(encoded(noise(32, 32, seed=seed))) for seed in (1, 2)] + [bytes(encoded(noise(48, 40)))]
    calls = [Call(True, {"x-explain-check": "true", "x-explain-top-k": "2"}, {"body": each}) for each in pictures]

    together = [json.loads(reply.body) for reply in model.run([*calls, Call(False, {}, {"body": pictures[0]})])]
    alone = [json.loads(model.run([call])[0].body) for call in calls]

    for one, other in zip(together, alone, strict=False):
        for got, wanted in zip(one["explanations"], other["explanations"], strict=True):
            assert got["check"]["verdict"] == wanted["check"]["verdict"]
            assert got["check"]["brightest"]["hidden"]["blur"] == pytest.approx(wanted["check"]["brightest"]["hidden"]["blur"])
    assert len({json.dumps(each["explanations"][0]["check"]) for each in alone}) == 3


def test_checks_have_a_limit_and_pictures_and_arrays_say_the_verdict() -> None:
    """413 for a request that asks for more, 503 for one whose batch does; a map that says nothing has no check."""
    model = Model(corner(), labels=["corner", "other"], mean=[0.0] * 3, std=[1.0] * 3, max_checks=2, **STEPS)
    picture = bytes(encoded(noise(40, 40)))
    asked = {"x-explain-check": "true", "x-explain-top-k": "2"}

    replies = model.run([Call(True, asked, {"body": picture})] * 2)
    assert sorted(reply.status for reply in replies) == [200, 503]
    several = post(model, {"instances": [{"data": picture_text(picture), "check": True}] * 3})
    assert several.status == 413
    assert b"at most 2 heatmaps to check" in several.body

    (array,) = model.run([Call(True, {**asked, "accept": "application/x-npy"}, {"body": picture})])
    verdicts = json.loads(array.headers["x-explain-check"])
    assert verdicts[0] in {"supported", "weak", "unsupported"}
    assert verdicts[1] is None  # nothing speaks for the other class: its map is zero


def test_an_archive_may_check_everything() -> None:
    """Unless a request says otherwise; predictions ask for nothing more."""
    model = Model(corner(), labels=["corner", "other"], mean=[0.0] * 3, std=[1.0] * 3, checks=True, **STEPS)
    picture = bytes(encoded(noise(40, 40)))

    def ask(**headers: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(model.run([Call(True, headers, {"body": picture})])[0].body)
        return told

    assert ask()["explanations"][0]["check"] == ask(**{"x-explain-check": "true"})["explanations"][0]["check"]
    assert "check" not in ask(**{"x-explain-check": "false"})["explanations"][0]
    assert model.explain(picture)[0].check is not None
    assert model.explain(picture, check=False)[0].check is None
    assert model.openapi["components"]["schemas"]["check"]["default"] is True
    (predicted,) = model.run([Call(False, {}, {"body": picture})])
    assert set(json.loads(predicted.body)) == {"corner", "other"}
    assert all(reply.status == 200 for reply in model.run([Call(False, {}, {"body": picture})] * 20))


class Everything(nn.Module):
    """Six labels, of which every picture has all."""

    def forward(self, activation: Tensor) -> Tensor:
        """Six logits above 0; `[N, C, 8, 8]` comes in."""
        return activation.mean((1, 2, 3))[:, None] * torch.arange(1.0, 7.0) + 1


def test_labels_that_reach_a_threshold_are_counted_too() -> None:
    """How many there are is known only behind the model: they have the same limits as those that are named, alone and together."""
    module = nn.Sequential(nn.AvgPool2d(4), nn.ReLU(), Everything()).eval()
    steps = {**STEPS, "scores": "sigmoid", "mean": [0.0] * 3, "std": [1.0] * 3, "method": "gradcam"}
    model, few = (Model(module, max_checks=limit, **steps) for limit in (8, 5))
    picture = bytes(encoded(noise(40, 40)))
    call = Call(True, {"x-explain-check": "true"}, {"body": picture})
    plain = Call(True, {}, {"body": picture})

    replies = model.run([call, call, plain])

    assert sorted(reply.status for reply in replies[:2]) == [200, 503]
    assert replies[2].status == 200
    checks = [each["check"] for reply in replies[:2] if reply.status == 200 for each in json.loads(reply.body)["explanations"]]
    assert len(checks) == 6
    assert all(checks)
    (refused,) = few.run([call])
    assert refused.status == 413
    assert b"at most 5 heatmaps to check in one request, got 6" in refused.body
    asked = {"x-explain-check": "true", "x-explain-top-k": "5"}
    assert few.run([Call(True, asked, {"body": picture})])[0].status == 200
    assert len(few.explain(picture, check=True)[0].targets) == 6  # nobody else waits for it


def picture_text(picture: bytes) -> str:
    """In base64."""
    import base64

    return base64.b64encode(picture).decode()
