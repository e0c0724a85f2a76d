"""Where a heatmap, as it is drawn, reaches a level: polygons in the original picture's pixels, and as SVG.

Marching squares over the heatmap's own cells, divided further. On the lines of that grid the heatmap is linear, so contours cross
them exactly where they should; between the lines they are straight.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from camserve.core.geometry import Contour, Rect, Ring
from camserve.core.messages import Explanation

Floats = NDArray[np.float64]

STEPS, LEAST = 64, 4
"""About into how many steps a heatmap's side is divided, and a cell at least."""

_BELOW = -1.0
"""Stands around the heatmap, so that every contour closes along the edge."""


def trace_contours(
    heatmap: NDArray[np.float32], view: Rect, size: tuple[int, int], levels: Sequence[float]
) -> tuple[Contour, ...]:
    """Trace the contours of a heatmap as it is drawn, within the picture.

    Args:
        heatmap: `[h, w]` in [0, 1]; it covers `view`.
        view: in the picture's pixels; what lies beyond the picture is cut off.
        size: (width, height) of the picture.
        levels: above 0, at most 1.

    Returns:
        One for each level, in their order: what is at least as bright. Points are rounded to two decimals.
    """
    down = _lines(heatmap.shape[0], view.top, view.bottom, size[1])
    across = _lines(heatmap.shape[1], view.left, view.right, size[0])
    if down is None or across is None:
        return tuple(Contour(level, ()) for level in levels)
    values = down[1] @ heatmap.astype(np.float64) @ across[1].T
    padded = np.pad(values, 1, constant_values=_BELOW)
    edges = (np.pad(down[0], 1, mode="edge"), np.pad(across[0], 1, mode="edge"))
    return tuple(Contour(level, _group(_trace(padded, *edges, level))) for level in levels)


def _lines(cells: int, low: float, high: float, side: int) -> tuple[Floats, Floats] | None:
    """Place the lines of the grid along one axis: their coordinates, and how much each cell adds there, `[n, cells]`.

    None where nothing lies on the picture.
    """
    steps = max(LEAST, STEPS // cells)
    centres = np.arange((cells - 1) * steps + 1) / steps + 0.5
    start, end = ((np.clip(edge, max(low, 0), min(high, side)) - low) / (high - low) * cells for edge in (low, high))
    if not start < end:
        return None
    at = np.concatenate([[start], centres[(centres > start) & (centres < end)], [end]])
    hats = np.clip(1 - np.abs(np.clip(at, 0.5, cells - 0.5)[:, None] - (np.arange(cells) + 0.5)), 0, 1)
    return low + at / cells * (high - low), hats


def _trace(values: Floats, ys: Floats, xs: Floats, level: float) -> list[Floats]:
    """Trace the rings `[n, 2]` around what is at least `level`, which lies to their left as x and y count."""
    above = values >= level
    corners = np.stack([above[:-1, :-1], above[:-1, 1:], above[1:, 1:], above[1:, :-1]])
    following = np.roll(corners, -1, 0)
    leaving, entering = corners & ~following, ~corners & following
    rows, columns = np.nonzero(leaving.any(0))
    leaving, entering = leaving[:, rows, columns], entering[:, rows, columns]
    across = len(xs)
    vertical = len(ys) * across  # edges are numbered by the node at their upper left: those along x first
    node = rows * across + columns
    sides = np.stack([node, vertical + node + 1, node + across, vertical + node])
    start, end = leaving.argmax(0), entering.argmax(0)
    saddle = leaving.sum(0) == 2
    end = np.where(saddle, (start + np.where(_saddle_value(values, rows, columns) >= level, 1, 3)) % 4, end)
    place = np.arange(len(rows))
    following_edge = dict(zip(sides[start, place].tolist(), sides[end, place].tolist(), strict=True))
    twice = np.flatnonzero(saddle)
    opposite = sides[(start[twice] + 2) % 4, twice].tolist(), sides[(end[twice] + 2) % 4, twice].tolist()
    following_edge.update(zip(*opposite, strict=True))
    return [_place(np.array(ring), values, ys, xs, level) for ring in _follow(following_edge)]


def _saddle_value(values: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
    """Return what a bilinear square has where it is level both ways: whether its opposite corners belong together."""
    a, b, c, d = values[rows, columns], values[rows, columns + 1], values[rows + 1, columns + 1], values[rows + 1, columns]
    bend = a + c - b - d
    value: Floats = (a * c - b * d) / np.where(bend == 0, 1, bend)
    return value


def _follow(following: dict[int, int]) -> Iterator[list[int]]:
    """Follow each ring of edges once around."""
    while following:
        first, edge = following.popitem()
        ring = [first]
        while edge != first:
            ring.append(edge)
            edge = following.pop(edge)
        yield ring


def _place(edges: NDArray[np.int64], values: Floats, ys: Floats, xs: Floats, level: float) -> Floats:
    """Place points `[n, 2]` (x, y) on edges of the grid, where the heatmap reaches the level between two nodes."""
    upright = edges >= values.size
    rows, columns = np.divmod(edges - upright * values.size, len(xs))
    rows_after, columns_after = rows + upright, columns + ~upright
    one, other = values[rows, columns], values[rows_after, columns_after]
    part = (level - one) / (other - one)
    x = xs[columns] + part * (xs[columns_after] - xs[columns])
    y = ys[rows] + part * (ys[rows_after] - ys[rows])
    return np.stack([x, y], 1)


def _group(rings: Iterable[Floats]) -> tuple[tuple[Ring, ...], ...]:
    """Group rings into polygons, the largest first: each outer one, and the holes that lie in it and in no smaller one."""
    outer: list[tuple[float, Floats, list[Floats]]] = []
    holes = []
    for ring in rings:
        area = _area(ring)
        if area > 0:
            outer.append((area, ring, []))
        elif area < 0:
            holes.append(ring)
    outer.sort(key=lambda each: each[0])
    for hole in holes:
        around = next((each for each in outer if _surrounds(each[1], hole)), outer[-1])
        around[2].append(hole)
    polygons = [tuple(filter(None, map(_close, (ring, *inner)))) for _, ring, inner in reversed(outer)]
    return tuple(polygon for polygon, (_, ring, _) in zip(polygons, reversed(outer), strict=True) if polygon and _close(ring))


def _area(ring: Floats) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _surrounds(ring: Floats, inner: Floats) -> bool:
    """Tell whether most of some points of another ring lie in this one: rings do not cross, but may touch."""
    x, y = inner[:: 1 + len(inner) // 8].T
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, 0).T
    crossed = (y0[:, None] > y) != (y1[:, None] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = x < x0[:, None] + (y - y0[:, None]) / (y1 - y0)[:, None] * (x1 - x0)[:, None]
    return bool(((crossed & left).sum(0) % 2).mean() > 0.5)


def _close(ring: Floats) -> Ring:
    """Round a ring, drop what repeats and what lies on a straight line, and close it; () where nothing is left of it."""
    points = np.round(ring, 2) + 0.0
    points = points[(points != np.roll(points, 1, 0)).any(1)]
    if len(points) > 2:
        before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
        points = points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]
    if len(points) < 3:
        return ()
    return tuple((float(x), float(y)) for x, y in (*points, points[0]))


def write_svg(size: tuple[int, int] | None, explanations: Sequence[Explanation]) -> str:
    """Write contours as SVG, to be laid over the picture: its user units are the picture's pixels.

    Args:
        size: (width, height) of the picture.

    Raises:
        ValueError: there are none: they were not asked for, or the input was a tensor.
    """
    if size is None or not any(each.contours for each in explanations):
        raise ValueError("there are no contours: ask with contours=0.5, or several levels; a tensor has none")
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}">']
    lines.append('<g fill="none" stroke="#ff3d00" stroke-width="1.5">')
    for explanation in explanations:
        for contour in explanation.contours or ():
            rings = [ring for polygon in contour.polygons for ring in polygon]
            path = "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in ring[:-1]) + "Z" for ring in rings)
            title = html.escape(f"{explanation.label}, {contour.level:g}").encode("ascii", "xmlcharrefreplace").decode()
            lines.append(f'<path vector-effect="non-scaling-stroke" d="{path}"><title>{title}</title></path>')
    return "\n".join([*lines, "</g>", "</svg>", ""])
