"""A chunk through the model: what a neighbour asks for decides nothing of what a picture gets."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn

from camserve.capture import open_backend
from camserve.core.config import Config
from camserve.core.errors import RequestError
from camserve.explain.explainer import Explainer, Prediction
from camserve.explain.ranking import Task

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
LAYER = "features"


class Mean(nn.Module):
    """Of each row."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, T]` to `[N, C]`."""
        return x.mean(2)


class Tied(nn.Module):
    """Sixty classes; but for the first two, which are the least probable, all are equally so."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 60)
        with torch.no_grad():
            self.features.weight.abs_()
            self.fc.weight.fill_(1)
            self.fc.weight[:2] = -1
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 60]`."""
        return self.fc(self.features(x).mean((2, 3)))


def seen(explainer: Explainer, wants: list[Task | None]) -> list[Prediction]:
    """What is seen of as many pictures as there are wants."""
    torch.manual_seed(0)
    found = explainer.explain([torch.rand(3, 8, 8) for _ in wants], wants)
    assert not any(isinstance(each, RequestError) for each in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("listed", [1, 5])
def test_equal_probabilities_are_listed_as_the_stock_handler_lists_them(listed: int) -> None:
    """Whatever `top_k` a neighbour has: `topk` orders and chooses ties by its k."""
    torch.manual_seed(1)
    model = Tied().eval()
    explainer = Explainer(open_backend(model, Config(layers=(LAYER,), channels_last=False), (8, 8), CPU), CPU, listed=listed)
    (alone,) = seen(explainer, [Task(LAYER, "gradcam")])
    probabilities = alone.logits.softmax(0)
    assert [score.index for score in alone.classes] == torch.topk(probabilities, listed).indices.tolist()
    for deep in (2, 8, 40, 59, 60):
        beside, neighbour = seen(explainer, [Task(LAYER, "gradcam"), Task(LAYER, "gradcam", top_k=deep)])
        assert beside.classes == alone.classes
        assert [each.target for each in beside.explanations] == [each.target for each in alone.explanations]
        targets = [each.target for each in neighbour.explanations]
        assert len(set(targets)) == deep
        assert targets[:listed] == [score.index for score in neighbour.classes][:deep]
        assert (0 in targets or 1 in targets) is (deep > 58)


@pytest.mark.parametrize("kind", ["eager", "script"])
@pytest.mark.parametrize("size", [(32, 32), (16, 64), (64, 16), (32, 48), (40, 24)])
def test_maps_of_tokens_lie_as_the_picture_does(size: tuple[int, int], kind: str) -> None:
    """Whatever its proportions, also where it has as many patches as the pictures that were surveyed: a square."""
    torch.manual_seed(0)
    model = nets.stored(nets.Tokens().eval(), kind, torch.zeros(1, 3, 32, 32))
    explainer = Explainer(open_backend(model, Config(layers=("blocks.0",)), (32, 32), CPU), CPU)
    (found,) = explainer.explain(
        [torch.rand(3, *size)], [Task("blocks.0", "hirescam")]
    )  # cell by cell: gradients must lie so too
    assert isinstance(found, Prediction)
    assert found.explanations[0].heatmap.shape == (size[0] // 8, size[1] // 8)


@pytest.mark.parametrize("kind", ["eager", "script"])
def test_a_pass_is_let_go_of_at_once(kind: str) -> None:
    """Its graph takes much memory: with a norm behind the layer too, it does not wait until Python looks for cycles."""
    backend = open_backend(nets.loaded("deep", kind), Config(layers=("conv",)), (nets.SIDE, nets.SIDE), CPU)
    gc.collect()
    gc.disable()
    try:
        captured = backend.capture.forward(nets.pictures(1), ["conv"])
        gradients = captured.gradients("conv", torch.tensor([0]), torch.tensor([1]))
        assert gradients.any()
        held = weakref.ref(captured.leaves["conv"])  # type: ignore[attr-defined]
        del captured
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("size", "closed"), [((8, 8), True), ((12, 8), False)])
def test_a_lone_pictures_targets_are_what_each_would_be_alone(size: tuple[int, int], closed: bool) -> None:
    """Made together where the gradients are known, and one by one where each takes a backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2), Mean(), nn.Linear(4, 6)).eval()
    explainer = Explainer(open_backend(model, Config(layers=("0",)), (8, 8), CPU), CPU)
    picture = torch.rand(3, *size)
    assert explainer.backend.capture.forward(picture[None], ["0"]).has_closed_form("0") is closed
    for method in ("gradcam++", "layercam", "contrast"):
        (together,) = explainer.explain([picture], [Task("0", method, (2, 0, 5))])
        alone = [explainer.explain([picture], [Task("0", method, (target,))])[0] for target in (2, 0, 5)]
        assert isinstance(together, Prediction)
        for found, single in zip(together.explanations, alone, strict=True):
            assert isinstance(single, Prediction)
            assert np.array_equal(found.heatmap, single.explanations[0].heatmap)
            assert found.range == single.explanations[0].range
