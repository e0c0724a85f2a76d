"""How a picture of another shape is fitted: cropped, squashed, or padded (a letterbox), and the view of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support.build import noise
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision import transforms

from camserve.core.config import Config
from camserve.core.geometry import Rect, region
from camserve.pictures.preprocess import Preprocess

SIDES = st.integers(1, 90)
PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1], "fit": "pad"}


@settings(max_examples=150, derandomize=True)
@given(SIDES, SIDES, st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_padding_is_timms_border_mode(width: int, height: int, resize: int, crop: int, grey_fill: bool) -> None:
    """Bit for bit timm's `ResizeKeepRatio(longest=1)` and `CenterCropOrPad`, which its `crop_mode: border` is made of."""
    assume(resize * min(width, height) > max(width, height) / 2)  # timm fails where the shorter side rounds to 0
    fill = 114 / 255 if grey_fill else 0
    config = Config.from_mapping({**PLAIN, "resize": resize, "crop": crop, "fill": fill, "interpolation": "bicubic"})
    picture = Image.fromarray(noise(width, height))
    steps = [ResizeKeepRatio(resize, longest=1.0, interpolation="bicubic"), CenterCropOrPad(crop, fill=round(255 * fill))]
    wanted = transforms.Compose([*steps, transforms.ToTensor()])(picture)
    assert torch.equal(Preprocess(config)(picture), wanted)


def test_without_a_crop_the_whole_is_padded_to_a_square() -> None:
    """`resize` alone says the square, or the rectangle, that the picture must fit into."""
    for resize, shape in ((64, (3, 64, 64)), ([40, 80], (3, 40, 80))):
        config = Config.from_mapping({**PLAIN, "resize": resize, "crop": None})
        assert Preprocess(config)(Image.fromarray(noise(90, 30))).shape == shape
        assert Preprocess(config).input_shape(90, 30) == shape


def test_squash_resizes_both_sides() -> None:
    """As `[height, width]` does."""
    picture = Image.fromarray(noise(90, 30))
    one, other = (
        Preprocess(Config.from_mapping({**PLAIN, "fit": fit, "resize": resize, "crop": 48}))(picture)
        for fit, resize in (("squash", 56), ("crop", [56, 56]))
    )
    assert torch.equal(one, other)


@settings(max_examples=100, derandomize=True)
@given(SIDES, SIDES, st.integers(8, 60), st.one_of(st.none(), st.integers(4, 70)))
def test_the_view_is_where_the_models_pixels_come_from(width: int, height: int, resize: int, crop: int | None) -> None:
    """Each pixel of the input lies, by the view, where its own colour says: the picture's colours are its coordinates."""
    config = Config.from_mapping({**PLAIN, "resize": resize, "crop": crop, "interpolation": "nearest", "fill": 1})
    rows, columns = np.indices((height, width))
    picture = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], 2).astype(np.uint8))
    steps = Preprocess(config)
    tensor = (steps(picture) * 255).round().numpy()
    seen = steps.view(width, height)
    assert seen is not None
    for axis, (low, high, side) in enumerate(((seen.top, seen.bottom, height), (seen.left, seen.right, width))):
        count = tensor.shape[1 + axis]
        places = low + (np.arange(count) + 0.5) * (high - low) / count
        inside = (places > 0) & (places < side)
        found = tensor[axis].max(1 - axis) if axis else tensor[0].max(1)
        padding = tensor[2].min(1 - axis) == 255
        assert np.array_equal(~padding, inside)
        own = np.where(tensor[2] == 255, 0, tensor[axis]).max(1 - axis)
        assert np.abs(own[inside] - np.floor(places[inside])).max(initial=0) <= 1
        assert found.shape == (count,)


def test_a_region_in_the_padding_is_clipped() -> None:
    """The view reaches beyond the picture above and below; the region does not."""
    config = Config.from_mapping({**PLAIN, "resize": 64, "crop": 64})
    seen = Preprocess(config).view(80, 40)
    assert seen == Rect(0, -20, 80, 60)
    heat = np.zeros((8, 8), np.float32)
    heat[1:4, 2] = 1
    assert region(heat, seen, 80, 40) == Rect(20, 0, 30, 20)
    heat[:] = 0
    heat[0, 0] = 1
    assert region(heat, seen, 80, 40) is None


@pytest.mark.parametrize("fill", [0.25, [0.1, 0.5, 0.9]])
def test_fill_is_what_the_model_sees_around_the_picture(fill: object) -> None:
    """A share of white, for all channels or for each."""
    config = Config.from_mapping({**PLAIN, "resize": 10, "crop": 20, "fill": fill})
    corner = Preprocess(config)(Image.fromarray(noise(10, 10)))[:, 0, 0]
    wanted = np.broadcast_to(np.asarray(fill), 3)
    assert np.abs(corner.numpy() - wanted).max() <= 0.5 / 255 + 1e-6
