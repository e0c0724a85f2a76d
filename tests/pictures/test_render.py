"""Overlays against a slow oracle; sizes, colours and round trips of what is drawn and encoded."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.support.comparison import oracle

from camserve.core.config import COLORMAPS
from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.pictures import png, render


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random picture, as Pillow hands it over: read-only."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels.setflags(write=False)
    return pixels


def heat(height: int = 7, width: int = 7, seed: int = 1) -> np.ndarray:
    """A random heatmap with a 0 and, where it has two cells, a 1."""
    values = np.random.default_rng(seed).random((height, width), np.float32)
    values.flat[-1] = 1
    values.flat[0] = 0
    return values


def assert_overlay(
    picture: np.ndarray, heatmap: np.ndarray, view: Rect, colormap: str = "viridis", opacity: float = 0.5
) -> np.ndarray:
    """The overlay, which is everywhere within one grey level of the oracle's."""
    before = picture.copy()
    drawn = render.draw_overlay(picture, heatmap, view, colormap, opacity)
    wanted = oracle.overlay(picture, heatmap, (view.left, view.top, view.right, view.bottom), colormap, opacity)
    assert drawn.dtype == np.uint8
    assert drawn.shape == picture.shape
    assert np.abs(drawn - wanted).max() < 1
    assert np.array_equal(picture, before)
    return drawn


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((30, 40), (7, 7)),
        ((40, 30), (7, 7)),
        ((3, 60), (7, 7)),
        ((60, 3), (7, 5)),
        ((1, 1), (7, 7)),
        ((1, 500), (4, 4)),
        ((500, 1), (1, 3)),
        ((24, 24), (1, 1)),
        ((24, 24), (1, 6)),
        ((9, 11), (28, 31)),
    ],
)
def test_overlay_over_the_whole_picture(size: tuple[int, int], cells: tuple[int, int]) -> None:
    """Wide, tall, tiny and stretched pictures, with fewer and with more cells than pixels."""
    assert_overlay(photograph(*size), heat(*cells), Rect(0, 0, size[1], size[0]))


@pytest.mark.parametrize(
    "view",
    [
        Rect(5, 0, 25, 20),
        Rect(5.3, 2.7, 24.9, 17.1),
        Rect(-8.25, 3, 12.5, 40.5),
        Rect(-30, -20, 60, 45.75),
        Rect(20.4, 15.4, 20.6, 15.6),
        Rect(10, 0, 10.4, 20),
        Rect(0.5, 0.5, 29.5, 19.5),
        Rect(100, 100, 130, 120),
        Rect(-50, 0, -10, 20),
    ],
)
@pytest.mark.parametrize("opacity", [0.4, 1.0])
def test_overlay_over_a_view(view: Rect, opacity: float) -> None:
    """Views with fractional edges, beyond the picture, smaller than a pixel, and outside of the picture."""
    assert_overlay(photograph(20, 30), heat(), view, opacity=opacity)


@pytest.mark.parametrize("colormap", COLORMAPS)
@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.5, 0.77, 1.0])
def test_overlay_with_every_colour_map(colormap: str, opacity: float) -> None:
    """Each colour map, from the picture alone to the colours alone."""
    picture = photograph(24, 31)
    drawn = assert_overlay(picture, heat(), Rect(0, 0, 31, 24), colormap, opacity)
    if opacity == 0:
        assert np.array_equal(drawn, picture)


@pytest.mark.parametrize("seed", range(20))
def test_overlay_anywhere(seed: int) -> None:
    """Random sizes, views, colour maps and opacities."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 40, 2))
    left, right = np.sort(random.uniform(-10, 50, 2))
    top, bottom = np.sort(random.uniform(-10, 50, 2))
    rows, columns = (int(side) for side in random.integers(1, 15, 2))
    view = Rect(float(left), float(top), float(right) + 0.1, float(bottom) + 0.1)
    assert_overlay(photograph(height, width, seed), heat(rows, columns, seed), view, COLORMAPS[seed % 5], float(random.random()))


def test_overlay_is_seamless_in_a_picture_of_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn does not depend on how many pixels are drawn at a time."""
    picture, view = photograph(33, 40), Rect(2.5, 1.5, 38.2, 31.9)
    wanted = assert_overlay(picture, heat(), view)
    for strip in (1, 100, 360):
        monkeypatch.setattr(render, "_STRIP", strip)
        assert np.array_equal(render.draw_overlay(picture, heat(), view, "viridis", 0.5), wanted)


def test_overlay_by_hand() -> None:
    """Two cells over the middle four of six pixels, in grey, half opaque; the outer two pixels at half brightness."""
    picture = np.full((1, 6, 3), 100, np.uint8)
    drawn = render.draw_overlay(picture, np.array([[0, 1]], np.float32), Rect(1, 0, 5, 1), "gray", 0.5)
    # Values at the pixels' centres 0, 0.25, 0.75, 1: grey 0, 63.75, 191.25, 255; each the mean with 100.
    assert drawn[0, :, 0].tolist() == pytest.approx([50, 50, 82, 146, 178, 50], abs=0.6)


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    """The left and top edges are included, the right and bottom ones are not, so that views side by side share no pixel."""
    picture, full = np.full((4, 4, 3), 100, np.uint8), np.ones((1, 1), np.float32)
    drawn = render.draw_overlay(picture, full, Rect(0.5, 1.5, 2.5, 3.5), "gray", 1.0)[..., 0]
    assert drawn.tolist() == [[50, 50, 50, 50], [255, 255, 50, 50], [255, 255, 50, 50], [50, 50, 50, 50]]


@pytest.mark.parametrize(
    ("colormap", "first", "last"),
    [
        ("viridis", (68, 1, 84), (253, 231, 37)),
        ("inferno", (0, 0, 4), (252, 255, 164)),
        ("turbo", (48, 18, 59), (122, 4, 3)),
        ("jet", (0, 0, 128), (128, 0, 0)),
        ("gray", (0, 0, 0), (255, 255, 255)),
    ],
)
def test_colour_maps_end_where_they_are_known_to(colormap: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    """The published first and last colours, red first; values beyond 0 and 1 take them too."""
    colours = render.apply_colormap(np.array([[0.0, 1.0, -np.inf, np.inf]]), colormap)
    np.testing.assert_array_equal(colours[0], [first, last, first, last])


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colours_equal_the_oracle(colormap: str) -> None:
    """Exactly the table's colours at k / 255, and within one level between."""
    steps = np.arange(256).reshape(16, 16) / 255
    exact = [[oracle.colour(value, colormap) for value in row] for row in steps]
    np.testing.assert_array_equal(render.apply_colormap(steps, colormap), np.rint(exact))
    values = np.random.default_rng(0).random((9, 14))
    between = [[oracle.colour(value, colormap) for value in row] for row in values]
    assert np.abs(render.apply_colormap(values, colormap) - np.array(between)).max() < 1


@pytest.mark.parametrize(
    ("size", "max_side", "wanted", "scale"),
    [
        ((300, 451), 1600, (300, 451), 1.0),
        ((1000, 1599), 1600, (1000, 1599), 1.0),
        ((1600, 1600), 1600, (1600, 1600), 1.0),
        ((3200, 1000), 1600, (1600, 500), 0.5),
        ((600, 1601), 1600, (600, 1600), 1600 / 1601),
        ((1, 20_000), 1600, (1, 1600), 0.08),
        ((20_000, 3), 16, (16, 1), 0.0008),
    ],
)
def test_fit_limits_the_longer_side(size: tuple[int, int], max_side: int, wanted: tuple[int, int], scale: float) -> None:
    """Only pictures that are too large are scaled, by the longer side, and no side falls below 1."""
    fitted, by = render.fit(np.full((*size, 3), 77, np.uint8), max_side)
    assert fitted.shape == (*wanted, 3)
    assert by == pytest.approx(scale)
    assert bool((fitted == 77).all())


def test_fit_averages() -> None:
    """Halving takes the mean of each four pixels."""
    picture = photograph(20, 30)
    means = picture.reshape(10, 2, 15, 2, 3).mean((1, 3))
    assert np.abs(render.fit(picture, 15)[0] - means).max() <= 0.5


@pytest.fixture(params=["ISA-L", "zlib"])
def png_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG as it is made with python-isal, and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(png, "ISAL", None)
    else:
        pytest.importorskip("isal", reason="python-isal has no wheel for this processor")


@pytest.mark.usefixtures("png_by")
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (33, 47), (300, 500)])
def test_png_keeps_every_pixel(size: tuple[int, int]) -> None:
    """PNG is lossless, red first; Pillow and OpenCV check its sums."""
    picture = photograph(*size)
    encoded = np.frombuffer(render.encode(picture, "png"), np.uint8)
    np.testing.assert_array_equal(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1], picture)
    with Image.open(io.BytesIO(render.encode(picture, "png"))) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(decoded), picture)


@pytest.mark.parametrize("media", ["jpeg", "webp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (40, 60)])
def test_lossy_formats_keep_the_picture(media: str, size: tuple[int, int]) -> None:
    """JPEG and WebP: the format, the size and, for a smooth picture, the colours, red first."""
    picture = np.full((*size, 3), (200, 120, 40), np.uint8)
    with Image.open(io.BytesIO(render.encode(picture, media))) as decoded:
        assert (decoded.format, decoded.size) == (media.upper(), size[::-1])
        assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - picture).max() <= 6


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_encode_takes_the_longest_side_that_the_format_has(media: str) -> None:
    """At the limit the picture is encoded; one pixel more is a 413 that names the size and the limit, not a crash."""
    longest = {"png": 1_000_000, "jpeg": 65_500, "webp": 16_383}[media]
    assert render.encode(np.zeros((1, longest, 3), np.uint8), media)
    for size in ((1, longest + 1), (longest + 1, 1)):
        with pytest.raises(RequestError, match=f"{size[1]} x {size[0]} pixels; {media} allows {longest}") as caught:
            render.encode(np.zeros((*size, 3), np.uint8), media)
        assert (caught.value.status, caught.value.kind) == (413, "ResponseTooLarge")


def test_opencv_and_the_table_agree_on_red_and_blue() -> None:
    """A value's colour, written as PNG and read by Pillow, is OpenCV's colour of that step."""
    values = np.full((2, 2), 200 / 255)
    blue, green, red = cv2.applyColorMap(np.full((1, 1), 200, np.uint8), cv2.COLORMAP_TURBO)[0, 0]
    with Image.open(io.BytesIO(render.encode(render.apply_colormap(values, "turbo"), "png"))) as decoded:
        assert decoded.getpixel((0, 0)) == (red, green, blue)
