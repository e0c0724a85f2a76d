"""Where cells lie, measured through what is answered: a patch of the picture is changed at many places, and the map changes there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.support.comparison.alignment import MAX_DISTANCE, Alignment, measure_alignment
from tests.support.models.places import Change, Ordered, Plain, Viewing
from torch import Tensor, nn

from camserve.capture import Backend, open_backend, synthesize_pictures
from camserve.core.config import Config
from camserve.core.errors import ConfigError

CPU = torch.device("cpu")

pytestmark = pytest.mark.numeric


def opened(model: nn.Module, size: tuple[int, int], **keys: object) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model.eval(), Config(channels_last=False, **keys), size, CPU)  # type: ignore[arg-type]


def measured(made: Backend, size: tuple[int, int], part: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Alignment:
    """The alignment of the default layer's activation, as every answer's map has it; places lie in this part of the picture."""
    layer = made.layers[0]

    def map_of(pictures: Tensor) -> Tensor:
        return made.capture.forward(pictures, [layer]).activation(layer)

    return measure_alignment(map_of, synthesize_pictures(size, 3, seed=9), part=part)


class Even(nn.Module):
    """As `Plain`, with kernels of even size: each cell sees what lies around its own place, not half a cell up and left of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def resized(size: tuple[int, int]) -> Change:
    """Another size, and proportions, inside the model."""
    return lambda x: nn.functional.interpolate(x, size=size, mode="bilinear")


def cropped(top: float, left: float, bottom: float, right: float) -> Change:
    """A part of the picture, as shares of its sides, resized to the picture's size."""

    def crop(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        part = x[:, :, int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
        return nn.functional.interpolate(part, size=(height, width), mode="bilinear")

    return crop


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "map": (Even, (64, 64)),
    "map, wide": (Even, (64, 96)),
    "map, no multiple": (Even, (72, 50)),
    "tokens": (Ordered, (64, 64)),
    "tokens, wide": (Ordered, (64, 96)),
    "tokens, high": (lambda: Ordered(before=1), (96, 48)),
    "registers behind": (lambda: Ordered(behind=4), (64, 96)),
    "columns": (lambda: Ordered("columns", behind=2), (64, 96)),
    "reversed": (lambda: Ordered("reversed"), (64, 64)),
    "mirrored inside": (lambda: Viewing(Even(), [lambda x: x.flip(3)]), (64, 64)),
    "turned inside": (lambda: Viewing(Even(), [lambda x: x.rot90(1, (2, 3))]), (64, 64)),
    "wide inside": (lambda: Viewing(Even(), [resized((64, 128))]), (64, 64)),
    "high inside": (lambda: Viewing(Even(), [resized((128, 64))]), (64, 96)),
    "wide inside, tokens": (lambda: Viewing(Ordered(before=1), [resized((48, 96))]), (64, 64)),
    "twice": (lambda: Viewing(Even(), [lambda x: x, lambda x: x.flip(3)]), (64, 64)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_the_picture_changes_the_cell_that_lies_there(name: str) -> None:
    """At most 0.6 cell, the median over 24 places, and one cell changes far more than most."""
    model, size = MODELS[name]
    found = measured(opened(model(), size), size)
    assert found.distance <= MAX_DISTANCE
    assert found.focus > 1.5


def test_kernels_of_odd_size_look_half_a_cell_up_and_left() -> None:
    """That is in the network, as in a ResNet, and no reading of it: beside that displacement its cells lie where they should."""
    found = measured(opened(Plain(), (64, 64)), (64, 64))
    assert 0.2 < found.down <= 0.5
    assert 0.2 < found.right <= 0.5
    assert found.rest <= MAX_DISTANCE


PARTS = [(0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), (0.07, 0.07, 0.93, 0.93), (0.12, 0.2, 0.9, 1.0)]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("kind", ["map", "tokens", "coarse"])
def test_a_picture_cropped_inside_has_its_map_where_the_crop_is(kind: str, part: tuple[float, float, float, float]) -> None:
    """Over all of the picture, 0 where the model sees nothing; and that is said."""
    model = {"map": Even, "tokens": lambda: Ordered(before=1), "coarse": Coarse}[kind]()
    size = (96, 96)
    made = opened(Viewing(model, [cropped(*part)]), size)
    assert "its cells lie over" in made.aligned[made.layers[0]].note
    assert measured(made, size, part).distance * (part[2] - part[0]) <= MAX_DISTANCE  # in cells as large as the layer's own


class Coarse(nn.Module):
    """One convolution of large steps, then points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU())
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.body(x).mean((2, 3)))


def test_a_crop_of_which_hardly_anything_is_seen_is_followed() -> None:
    """Probes, as large as a cell, tell no place of a single row; the steps from map to map do."""
    made = opened(Viewing(Coarse(), [cropped(0.45, 0, 0.55, 1)]), (64, 64))
    (view,) = made.aligned[made.layers[0]].site.views
    assert view.rows == pytest.approx((28 / 64, 35 / 64), abs=0.01)
    assert view.columns == pytest.approx((0, 1), abs=0.01)


def test_a_crop_whose_place_nothing_tells_is_refused() -> None:
    """The same without gradients."""
    crop = cropped(0.45, 0, 0.55, 1)
    with pytest.raises(ConfigError, match=r"\d+ of \d+ patches of the picture, changed, change nothing of it"):
        opened(Viewing(Coarse(), [lambda x: crop(x.detach())]), (64, 64))
