"""What `Model.explain` returns for one picture: its classes and heatmaps, which show themselves in a notebook."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core.geometry import Contour, Inside, Rect
from camserve.core.messages import Answer, Media, Options, Score
from camserve.core.messages import Explanation as Target
from camserve.core.messages.checks import Check
from camserve.core.text import join_names
from camserve.explain.contours import write_svg
from camserve.pictures.bounds.limits import Quota
from camserve.pictures.overlays import draw_explanations, prepare_canvas

MEDIA: dict[str, Media] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".npy": "npy"}
"""Endings of the files that `Explanation.save` writes."""

_UNLIMITED = 2**62


class Explanation:
    """One picture, explained.

    `target`, `label`, `probability`, `heatmap`, `range`, `region`, `warnings`, `check`, `inside` and `contours` are those of the
    first target. Of several labels at once there may be none, where none was asked for and none reaches the threshold: `targets`
    is empty, the overlay is the picture itself, and these raise ValueError.

    Args:
        answer: what the pipeline says of the picture.
        options: what was asked.
        max_side: the longest side of an overlay, in pixels.
        reopen: opens the picture (RGB); None where a tensor was explained, which has none.
        measured: what the archive's report says of the layer and the method.
    """

    def __init__(
        self,
        answer: Answer,
        options: Options,
        max_side: int,
        reopen: Callable[[], Image.Image] | None,
        measured: Mapping[str, Any] | None = None,
    ) -> None:
        self._answer = answer
        self._options = options
        self._max_side = max_side
        self._reopen = reopen
        self._measured = measured

    @property
    def classes(self) -> tuple[Score, ...]:
        """The most probable classes, most probable first."""
        return self._answer.classes

    @property
    def targets(self) -> tuple[Target, ...]:
        """Each explained class with its heatmap, in the order in which they were asked for."""
        return self._answer.explanations

    @property
    def view(self) -> Rect | None:
        """The rectangle of the picture that the model saw, which the heatmaps cover, in pixels; None: not known."""
        return self._answer.image.view if self._answer.image else None

    @property
    def method(self) -> str:
        """How the maps were made."""
        return self._answer.method

    @property
    def layer(self) -> str:
        """Whose activation was weighted."""
        return self._answer.layer

    @property
    def measured(self) -> Mapping[str, Any] | None:
        """What was measured of this layer and method on pictures, as answers have it (docs/reference/answers.md).

        None where the archive holds no report that says it of what is served.
        """
        return self._measured

    @property
    def target(self) -> int:
        """Index of the explained class."""
        return self._first.target

    @property
    def check(self) -> Check | None:
        """How far the heatmap is borne out; None where that was not asked for, or there is no map."""
        return self._first.check

    @property
    def inside(self) -> Inside | None:
        """What of the map lies inside the area that was named; None where none was, or there is no map."""
        return self._first.inside

    @property
    def contours(self) -> tuple[Contour, ...] | None:
        """The heatmap's contours, one for each level that was named; None where none was, or there is no map."""
        return self._first.contours

    @property
    def label(self) -> str:
        """Label of the explained class."""
        return self._first.label

    @property
    def probability(self) -> float:
        """Probability of the explained class, 0 to 1."""
        return self._first.probability

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The heatmap `[h, w]` in [0, 1], float32, at the layer's own resolution."""
        return self._first.heatmap

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest value of the map before it was scaled; None where it was not finite."""
        return self._first.range

    @property
    def region(self) -> Rect | None:
        """The box around the brightest part, in pixels of the picture; None where there is none."""
        return self._first.region

    @property
    def warnings(self) -> tuple[str, ...]:
        """`zero`, `constant` or `not_finite` where the map says nothing."""
        return self._first.warnings

    @property
    def _first(self) -> Target:
        if not self.targets:
            raise ValueError("no label reaches the threshold, so none is explained; ask with target or top_k")
        return self.targets[0]

    @property
    def overlay(self) -> Image.Image:
        """The picture with the heatmap over it; of several targets side by side.

        Raises:
            ValueError: a tensor was explained, which has no picture.
        """
        return Image.open(io.BytesIO(self._draw("png")))

    def save(self, path: Path | str) -> Path:
        """Write the overlay (`.png`, `.jpg`, `.webp`), the heatmaps `[targets, h, w]` as an array (`.npy`), or contours (`.svg`).

        Raises:
            ValueError: another ending, or a picture of a tensor.
        """
        path = Path(path)
        media = MEDIA.get(path.suffix.lower())
        if path.suffix.lower() == ".svg":
            image = self._answer.image
            path.write_text(write_svg((image.width, image.height) if image else None, self.targets), "utf-8")
            return path
        if media is None:
            raise ValueError(f"save: expected a name that ends in {join_names([*MEDIA, '.svg'])}, got {path.name!r}")
        if media == "npy":
            maps = [each.heatmap for each in self.targets]
            np.save(path, np.stack(maps) if maps else np.zeros((0, *self._answer.grid), np.float32))
        else:
            path.write_bytes(self._draw(media))
        return path

    def _draw(self, media: Media) -> bytes:
        if self._reopen is None:
            raise ValueError("a tensor was explained, which has no picture to draw on; use heatmap, or save an .npy")
        canvas = prepare_canvas(self._reopen(), self.view, self._max_side)
        return draw_explanations(self._answer, canvas, replace(self._options, media=media), Quota(_UNLIMITED)).picture or b""

    def _repr_png_(self) -> bytes | None:
        """Show the overlay in a notebook; nothing where there is no picture."""
        return self._draw("png") if self._reopen else None

    def __repr__(self) -> str:
        of = ", ".join(f"{each.label} {each.probability:.3f}" for each in self.targets)
        height, width = self.heatmap.shape if self.targets else self._answer.grid
        return f"Explanation({of or 'no label reaches the threshold'}; {self.method} of {self.layer}, {height} x {width})"
