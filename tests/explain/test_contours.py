"""Contours: a point lies inside of them where the heatmap, as it is drawn, is as bright as their level."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.explain.test_areas import bright, drawn, spotted

from camserve.core.geometry import Contour, Rect, Ring
from camserve.explain.contours import trace_contours

POINTS = 300


def rings_around(contour: Contour, x: float, y: float) -> int:
    """How many rings go around a point."""
    rings = [ring for polygon in contour.polygons for ring in polygon]
    return sum(sum(_crosses(one, other, x, y) for one, other in itertools.pairwise(ring)) % 2 for ring in rings)


def _crosses(one: tuple[float, float], other: tuple[float, float], x: float, y: float) -> bool:
    return (one[1] > y) != (other[1] > y) and x < one[0] + (y - one[1]) / (other[1] - one[1]) * (other[0] - one[0])


def area(ring: Ring) -> float:
    """By the formula of Gauss."""
    return sum(x * after - y * before for (x, y), (before, after) in itertools.pairwise(ring)) / 2


@pytest.mark.parametrize(
    ("grid", "view", "size"),
    [
        ((7, 7), Rect(93.96, 18.75, 357.04, 281.25), (451, 300)),
        ((8, 6), Rect(-20, 0, 120, 80), (100, 80)),
        ((1, 5), Rect(0, 0, 50, 40), (50, 40)),
        ((20, 20), Rect(0, -30, 90, 110), (90, 80)),
    ],
)
def test_points_lie_inside_where_the_heatmap_is_bright(grid: tuple[int, int], view: Rect, size: tuple[int, int]) -> None:
    """With holes, at the picture's edge, and in views that reach beyond it; but for points that all but are on the line."""
    random = np.random.default_rng(4)
    heatmap: NDArray[np.float32] = random.random(grid, np.float32)
    heatmap = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())

    contours = trace_contours(heatmap, view, size, (0.3, 0.5, 0.9))

    xs = random.uniform(max(view.left, 0), min(view.right, size[0]), POINTS)
    ys = random.uniform(max(view.top, 0), min(view.bottom, size[1]), POINTS)
    for contour in contours:
        for x, y, value in zip(xs, ys, drawn(heatmap, view, xs, ys), strict=True):
            assert abs(value - contour.level) < 0.015 or rings_around(contour, x, y) % 2 == (value > contour.level), (x, y)
        for outer, *holes in contour.polygons:
            assert area(outer) > 0
            assert all(area(hole) < 0 for hole in holes)
            assert all(ring[0] == ring[-1] and len(ring) > 3 for ring in (outer, *holes))
            assert all(_within(x, y, size) for ring in (outer, *holes) for x, y in ring)
            for hole in holes:
                assert rings_around(Contour(0, ((outer,),)), *hole[0]) == 1


def _within(x: float, y: float, size: tuple[int, int]) -> bool:
    return 0 <= x <= size[0] and 0 <= y <= size[1]


def test_a_hole_belongs_to_the_smallest_polygon_around_it() -> None:
    """An island in a lake on an island: two polygons, each with one hole."""
    heatmap = np.zeros((11, 11), np.float32)
    for inset, value in enumerate((0.0, 1.0, 0.0, 1.0, 0.0)):
        heatmap[inset : 11 - inset, inset : 11 - inset] = value

    (contour,) = trace_contours(heatmap, Rect(0, 0, 110, 110), (110, 110), (0.5,))

    assert [len(polygon) for polygon in contour.polygons] == [2, 2]
    sizes = [abs(area(ring)) for polygon in contour.polygons for ring in polygon]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("beyond", "polygons"), [(-0.01, 1), (-1e-4, 1), (2e-5, 2), (0.01, 2)])
def test_two_bright_corners_are_one_where_the_saddle_between_them_is_as_bright(beyond: float, polygons: int) -> None:
    """The surface is level both ways at 0.9 / 1.9; so near to that, a square of the grid has two corners above and two below.

    In that square the mean of the corners is 2e-4 above the saddle, so a rule by the mean would join both at 2e-5.
    """
    level = 0.9 / 1.9 + beyond
    heatmap = np.array([[1, 0], [0, 0.9]], np.float32)

    (contour,) = trace_contours(heatmap, Rect(0, 0, 20, 20), (20, 20), (level,))

    assert len(contour.polygons) == polygons


def test_a_level_of_a_single_cell_is_a_diamond() -> None:
    """Halfway from its centre to the next cells'."""
    heatmap = np.zeros((5, 5), np.float32)
    heatmap[2, 2] = 1

    (contour,) = trace_contours(heatmap, Rect(0, 0, 50, 50), (50, 50), (0.5,))

    ((ring,),) = contour.polygons
    assert {(30.0, 25.0), (25.0, 30.0), (20.0, 25.0), (25.0, 20.0)} <= set(ring)


def test_nothing_is_brighter_than_the_brightest_and_all_brighter_than_nothing() -> None:
    """No polygon; and the whole of what the model saw of the picture."""
    view, size = Rect(-10, 5, 30, 35), (20, 40)

    assert trace_contours(np.full((3, 3), 0.4, np.float32), view, size, (0.5,))[0].polygons == ()
    ((ring,),) = trace_contours(np.full((3, 3), 0.6, np.float32), view, size, (0.5,))[0].polygons
    assert set(ring) == {(0.0, 5.0), (20.0, 5.0), (20.0, 35.0), (0.0, 35.0)}
    assert trace_contours(np.ones((3, 3), np.float32), Rect(30, 0, 40, 10), size, (0.5,))[0].polygons == ()


def test_contours_are_drawn_and_written_as_svg(tmp_path: object) -> None:
    """Over the picture where a picture is asked for, and as paths of its size."""
    model, pixels = bright(resize=None, crop=None), spotted(80, 64, (8, 8, 32, 24))

    (plain,), (explanation,) = model.explain(pixels), model.explain(pixels, contours=0.5)
    drawn_on = np.asarray(explanation.overlay).astype(int) - np.asarray(plain.overlay).astype(int)
    tree = ElementTree.parse(explanation.save(f"{tmp_path}/lines.svg"))

    changed = np.argwhere(np.abs(drawn_on).sum(2) > 0)
    assert 0 < len(changed) < 80 * 64 / 3
    assert explanation.contours is not None
    ((ring,),) = explanation.contours[0].polygons
    assert changed.min(0) == pytest.approx([min(y for _, y in ring), min(x for x, _ in ring)], abs=3)
    (path,) = tree.iter("{http://www.w3.org/2000/svg}path")
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path.attrib["d"])]
    assert list(zip(numbers[::2], numbers[1::2], strict=True)) == [pytest.approx(point) for point in ring[:-1]]
    with pytest.raises(ValueError, match="ask with contours"):
        plain.save(f"{tmp_path}/none.svg")
