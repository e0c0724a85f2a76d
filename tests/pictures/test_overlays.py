"""Explanations over a picture: a canvas of the size at which it is drawn, and the same pictures whatever its size was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.support.build import noise

from camserve.core.errors import RequestError
from camserve.core.geometry import Rect
from camserve.core.messages import Answer, Explanation, Media, Options
from camserve.pictures import captions, overlays, render
from camserve.pictures.bounds.limits import Quota

VIEWS = [None, Rect(20.4, 0.0, 79.6, 64.0), Rect(-3.7, 1.25, 111.1, 62.5)]


def answer_of(count: int) -> Answer:
    """So many explanations, with nothing drawn yet."""
    heatmaps = np.random.default_rng(0).random((count, 7, 7), dtype=np.float32)
    labels = ("cat", "猫")
    explanations = (Explanation(index, labels[index], 0.5, each, (0, 1), None, ()) for index, each in enumerate(heatmaps))
    return Answer((), tuple(explanations), None, "gradcam", "top")


def options_of(media: Media, overlay: bool = False) -> Options:
    """What asks for it."""
    return Options((), "gradcam", "top", "jet", 0.4, media=media, overlay=overlay)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(100, 64), (64, 200), (7, 601), (40, 30)])
@pytest.mark.parametrize(("media", "overlay"), [("png", False), ("jpeg", False), ("json", True)])
def test_explanations_are_drawn_over_the_picture_at_its_largest_side(
    size: tuple[int, int], view: Rect | None, media: Media, overlay: bool
) -> None:
    """What `render` makes of the scaled picture and the view in its pixels, byte by byte."""
    width, height = size
    pixels, scale = render.fit(noise(*size), 80)
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    place = (view or Rect(0, 0, width, height)).scaled(across, down)
    wanted = [render.draw_overlay(pixels, each.heatmap, place, "jet", 0.4) for each in answer_of(2).explanations]

    canvas = overlays.prepare_canvas(Image.fromarray(noise(*size)), view, 80)
    answer = overlays.draw_explanations(answer_of(2), canvas, options_of(media, overlay), Quota(10**6))

    assert max(canvas.pixels.shape) == min(80, max(size))
    assert canvas.scale == scale
    if overlay:
        assert [each.overlay for each in answer.explanations] == [render.encode(each, "png") for each in wanted]
        assert (answer.picture, answer.scale) == (None, 1.0)
    else:
        whole = captions.join_side_by_side(wanted, ["cat", "class 1"])
        assert (answer.picture, answer.scale) == (render.encode(whole, media), scale)
        assert all(each.overlay is None for each in answer.explanations)


def test_the_picture_of_one_explanation_has_no_caption() -> None:
    """It is as large as the canvas."""
    canvas = overlays.prepare_canvas(Image.fromarray(noise(50, 40)), None, 80)
    answer = overlays.draw_explanations(answer_of(1), canvas, options_of("png"), Quota(0))

    wanted = render.draw_overlay(noise(50, 40), answer.explanations[0].heatmap, Rect(0, 0, 50, 40), "jet", 0.4)
    assert answer.picture == render.encode(wanted, "png")


def test_drawing_leaves_the_canvas_as_it_was() -> None:
    """Every explanation is drawn over the picture, none over another."""
    canvas = overlays.prepare_canvas(Image.fromarray(noise(50, 40)), None, 80)
    overlays.draw_explanations(answer_of(2), canvas, options_of("json", overlay=True), Quota(10**6))

    np.testing.assert_array_equal(canvas.pixels, noise(50, 40))


def test_overlays_that_exceed_the_quota_are_refused() -> None:
    """The last one too; how many were drawn until then, the pipeline's tests count."""
    canvas = overlays.prepare_canvas(Image.fromarray(noise(50, 40)), None, 80)
    options = options_of("json", overlay=True)
    drawn = overlays.draw_explanations(answer_of(2), canvas, options, Quota(10**6)).explanations
    size = sum(-(-len(each.overlay or b"") // 3) * 4 for each in drawn)

    assert overlays.draw_explanations(answer_of(2), canvas, options, Quota(size)).explanations[1].overlay == drawn[1].overlay
    with pytest.raises(RequestError, match=f"more than the limit of {size - 1} bytes") as caught:
        overlays.draw_explanations(answer_of(2), canvas, options, Quota(size - 1))
    assert (caught.value.status, caught.value.kind) == (413, "ResponseTooLarge")


def test_a_large_picture_is_copied_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows, of heights that the strips divide and do not."""
    monkeypatch.setattr(overlays, "_LARGE", 0)
    for height in (255, 256, 257, 1000):
        pixels = noise(9, height)
        np.testing.assert_array_equal(overlays.prepare_canvas(Image.fromarray(pixels), None, 1000).pixels, pixels)
