"""Sizes, views and regions, by hand and against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from camserve.core.config import Size
from camserve.core.geometry import Rect, input_size, region, resized, view, window

SIDES = st.integers(1, 97)
SIZES = st.one_of(st.none(), st.integers(1, 64), st.tuples(st.integers(1, 64), st.integers(1, 64)))


def transformed(picture: Image.Image, resize: Size, crop: Size) -> Image.Image:
    """torchvision's own Resize and CenterCrop, without interpolation."""
    if resize is not None:
        picture = Resize(resize, InterpolationMode.NEAREST)(picture)
    return picture if crop is None else CenterCrop(crop)(picture)


def ramp(width: int, height: int, axis: int) -> Image.Image:
    """A float picture whose pixels hold their own centre's x (axis 1) or y (axis 0), plus 1000: padding stays 0."""
    centres = np.indices((height, width), dtype=np.float32)[axis] + 1000.5
    return Image.fromarray(centres)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((451, 300), 256, (384, 256)),  # 256 × 451 / 300 = 384.85, rounded down
        ((300, 451), 256, (256, 384)),
        ((200, 200), 256, (256, 256)),
        ((1, 20_000), 256, (256, 5_120_000)),
        ((451, 300), (100, 50), (50, 100)),
        ((451, 300), None, (451, 300)),
    ],
)
def test_the_shorter_side_is_resized_and_the_longer_rounded_down(
    size: tuple[int, int], resize: Size, expected: tuple[int, int]
) -> None:
    """`resized` gives (width, height) as torchvision's Resize does."""
    assert resized(*size, resize) == expected


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((384, 256), 224, (80, 16, 304, 240)),
        ((229, 227), 224, (2, 2, 226, 226)),  # 2.5 and 1.5, both rounded to the even 2
        ((10, 7), (8, 10), (0, 0, 10, 8)),  # one row short: the padding goes below
        ((5, 5), 10, (-2, -2, 8, 8)),  # five short: two before, three behind
        ((20, 5), 10, (5, -2, 15, 8)),
        ((20, 5), None, (0, 0, 20, 5)),
    ],
)
def test_the_crop_is_centred_and_padded_as_torchvision_does(
    size: tuple[int, int], crop: Size, expected: tuple[int, int, int, int]
) -> None:
    """`window` gives the crop's edges, negative where it pads."""
    assert window(*size, crop) == expected


@pytest.mark.parametrize(
    ("size", "resize", "crop", "expected"),
    [
        ((451, 300), 256, 224, [93.96, 18.75, 357.04, 281.25]),  # the contract's example
        ((451, 300), 256, None, [0.0, 0.0, 451.0, 300.0]),
        ((451, 300), None, 224, [114.0, 38.0, 338.0, 262.0]),  # 113.5 is rounded to the even 114
        ((451, 300), (100, 50), None, [0.0, 0.0, 451.0, 300.0]),
        ((100, 100), 50, 100, [-50.0, -50.0, 150.0, 150.0]),
        ((100, 100), 50, 101, [-50.0, -50.0, 152.0, 152.0]),
        ((1, 20_000), 256, 224, [0.06, 9999.56, 0.94, 10000.44]),
    ],
)
def test_the_view_is_the_rectangle_that_reaches_the_model(
    size: tuple[int, int], resize: Size, crop: Size, expected: list[float]
) -> None:
    """Resizing and cropping are undone, to two decimals; the view lies beyond the picture where the crop pads."""
    assert view(*size, resize, crop).rounded() == expected


@settings(max_examples=150, derandomize=True)
@given(SIDES, SIDES, SIZES, SIZES)
def test_sizes_and_views_are_torchvisions(width: int, height: int, resize: Size, crop: Size) -> None:
    """A picture that holds its own coordinates shows, after torchvision's transforms, where each input pixel came from."""
    rect = view(width, height, resize, crop)
    for axis, (start, end, side) in enumerate([(rect.top, rect.bottom, height), (rect.left, rect.right, width)]):
        seen = np.asarray(transformed(ramp(width, height, axis), resize, crop))
        assert seen.shape == input_size(width, height, resize, crop)
        cells = seen.shape[axis]
        centres = start + (np.arange(cells) + 0.5) * (end - start) / cells
        line = np.sort(seen, axis=1 - axis).take(-1, axis=1 - axis)  # the padding's zeros sort first
        # The nearest source pixel holds the centre, so its own is at most half a pixel off; outside there is padding.
        inside = (centres > 0) & (centres < side)
        np.testing.assert_array_equal(line > 0, inside)
        assert np.abs(line[inside] - 1000 - centres[inside]).max(initial=0) <= 0.5 + 1e-3


def test_rounding_never_shows_a_negative_zero() -> None:
    """JSON must not hold -0.0."""
    assert str(Rect(-0.001, -0.0, 1.005, 2.0).rounded()[:2]) == "[0.0, 0.0]"


def heatmap(*rows: list[float]) -> np.ndarray:
    """A heatmap written out."""
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("cells", "rect", "expected"),
    [
        # Cells of 10 × 10: columns 1 and 2, row 0.
        (heatmap([0.4, 1.0, 0.5], [0.0, 0.49, 0.1]), Rect(0, 0, 30, 20), Rect(10, 0, 30, 10)),
        # Half of the maximum counts, not half of one; the box holds cells between two bright ones.
        (heatmap([0.2, 0, 0], [0, 0, 0.1]), Rect(0, 0, 30, 20), Rect(0, 0, 30, 20)),
        # The view starts at (5, 3) and its cells are 20 × 5.
        (heatmap([0, 0], [0, 1]), Rect(5, 3, 45, 13), Rect(25, 8, 45, 13)),
        # Clipped on all four sides.
        (heatmap([1.0]), Rect(-10, -10, 110, 60), Rect(0, 0, 100, 50)),
        # All of it on the padding, or only touching the picture's edge.
        (heatmap([1.0, 0], [0, 0]), Rect(-50, -50, 150, 100), Rect(0, 0, 50, 25)),
        (heatmap([1.0, 0, 0]), Rect(-50, 0, 100, 50), None),
        (heatmap([0, 0, 1.0]), Rect(0, 0, 150, 50), None),
        (heatmap([0, 0]), Rect(0, 0, 100, 50), None),
    ],
)
def test_the_region_is_the_box_around_the_brighter_half(cells: np.ndarray, rect: Rect, expected: Rect | None) -> None:
    """Cells of at least half the maximum, cell-aligned in the view, clipped to a picture of 100 × 50; or None."""
    assert region(cells, rect, 100, 50) == expected


def test_the_contracts_example_has_a_region_on_the_picture() -> None:
    """The contract's heatmap, [[0, 0.12], [0.4, 1]], is brightest in its lower right quarter."""
    found = region(heatmap([0.0, 0.12], [0.4, 1.0]), view(451, 300, 256, 224), 451, 300)
    assert found is not None
    assert found.rounded() == [225.5, 150.0, 357.04, 281.25]
