"""Types of a server's answer: those that the worker made it of, which here can be saved, and show themselves in notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camserve.core import messages
from camserve.core.geometry import Contour, Inside, Rect
from camserve.core.messages import checks
from camserve.core.text import join_names, show
from camserve.explain.contours import write_svg

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The pictures that can be written, by the ending of their name."""

QUALITY = 90
"""Of JPEG and WebP: the server's."""

GAP = 8
"""Pixels between overlays that are shown side by side."""


class Prediction(messages.Score):
    """One class: its index, its label, and its probability, 0 to 1; where the scores are values, its value."""


class Explanation(messages.Explanation):
    """What speaks for one class; `heatmap` covers the result's `view`. In a notebook it shows its overlay."""

    def save(self, path: str | Path) -> None:
        """Writes the overlay to `path`, as PNG, JPEG or WebP by the ending: .png, .jpg, .jpeg, .webp.

        Raises:
            ValueError: it was not asked for, or the ending is another.
        """
        _write(Path(path), self.overlay)

    def _repr_png_(self) -> bytes | None:
        return self.overlay


@dataclass(frozen=True)
class Result:
    """The answer for one picture. In a notebook it shows itself.

    Attributes:
        predictions: most probable first.
        explanations: one for each target, in the order asked for; of several labels at once there may be none, where none was
            asked for and none reaches the threshold.
        size: the picture's width and height in pixels; None for a tensor.
        view: the rectangle of the picture that reached the model; None for a tensor, or where the archive does not know it.
        weights: the start of the weights' digest.
        scores: `softmax`, `sigmoid` or `none`: what the probabilities are.
        threshold: from which on a label counts, where there are several at once.
        measured: what was measured of the layer and the method on pictures, where a check was asked for and the archive says it.
    """

    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...]
    size: tuple[int, int] | None
    view: Rect | None
    method: str
    layer: str
    model: str
    version: str
    weights: str
    scores: str = "softmax"
    threshold: float | None = None
    measured: Mapping[str, Any] | None = None

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The first explanation's heatmap `[h, w]`; raises ValueError where there is none."""
        return self._first.heatmap

    @property
    def region(self) -> Rect | None:
        """The first explanation's region; raises ValueError where there is none."""
        return self._first.region

    @property
    def counting(self) -> set[int]:
        """The indices of the classes that count: of several labels at once those that reach the threshold, else the first."""
        if self.scores != "sigmoid":
            return {each.index for each in self.predictions[:1]}
        return {each.index for each in self.predictions if each.probability >= (self.threshold or 0.0)}

    @property
    def _first(self) -> Explanation:
        if not self.explanations:
            raise ValueError(
                f"nothing is explained: no label reaches the threshold of {self.threshold}; ask with target or top_k"
            )
        return self.explanations[0]

    def save(self, path: str | Path) -> None:
        """Writes the overlay to `path`, as PNG, JPEG or WebP by the ending; those of several targets stand side by side.

        An ending of .svg has the contours alone, to be laid over the picture.

        Raises:
            ValueError: what is written was not asked for, or the ending is none of .png, .jpg, .jpeg, .webp and .svg.
        """
        if Path(path).suffix.lower() == ".svg":
            Path(path).write_text(write_svg(self.size, self.explanations), "utf-8")
        else:
            _write(Path(path), self._repr_png_())

    def _repr_png_(self) -> bytes | None:
        overlays = [explanation.overlay for explanation in self.explanations]
        pictures = [overlay for overlay in overlays if overlay is not None]
        if len(pictures) < len(overlays) or not pictures:
            return None
        return pictures[0] if len(pictures) == 1 else _side_by_side(pictures)


def read_result(answer: Mapping[str, Any]) -> Result:
    """Reads the JSON of an explanation's answer."""
    image = answer["image"] or {}
    return Result(
        predictions=tuple(Prediction(each["index"], each["label"], each["probability"]) for each in answer["classes"]),
        explanations=tuple(_explanation(each) for each in answer["explanations"]),
        size=(image["width"], image["height"]) if image else None,
        view=_rect(image.get("view")),
        method=answer["method"],
        layer=answer["layer"],
        model=answer["model"],
        version=answer["version"],
        weights=answer["weights"],
        scores=answer.get("scores", "softmax"),
        threshold=answer.get("threshold"),
        measured=answer.get("measured"),
    )


def read_overlay(explanation: Mapping[str, Any]) -> bytes | None:
    """Reads the overlay, a PNG, from one explanation's JSON; None where it has none."""
    url = explanation.get("overlay")
    return base64.b64decode(url.partition(",")[2]) if url else None


def _explanation(member: Mapping[str, Any]) -> Explanation:
    heatmap = np.asarray(member["heatmap"], dtype=np.float32)
    heatmap.setflags(write=False)
    limits = member["range"]
    return Explanation(
        target=member["target"],
        label=member["label"],
        probability=member["probability"],
        heatmap=heatmap,
        range=limits and (limits[0], limits[1]),
        region=_rect(member["region"]),
        warnings=tuple(member["warnings"]),
        overlay=read_overlay(member),
        lowers=member.get("direction") == "lowers",
        check=_check(member.get("check")),
        inside=_inside(member.get("inside")),
        contours=_contours(member.get("contours")),
    )


def _inside(member: Mapping[str, Any] | None) -> Inside | None:
    return None if member is None else Inside(member["share"], member["area"], member["peak"])


def _contours(several: Sequence[Mapping[str, Any]] | None) -> tuple[Contour, ...] | None:
    if several is None:
        return None
    return tuple(
        Contour(each["level"], tuple(tuple(tuple(map(_point, ring)) for ring in polygon) for polygon in each["coordinates"]))
        for each in several
    )


def _point(pair: Sequence[float]) -> tuple[float, float]:
    return pair[0], pair[1]


def _check(member: Mapping[str, Any] | None) -> checks.Check | None:
    if member is None:
        return None
    return checks.Check(
        verdict=member["verdict"],
        support=member["support"],
        shares=tuple(member["shares"]),
        brightest=_hidden(member["brightest"]),
        random=_hidden(member["random"]),
        moved=_hidden(member["moved"]),
        empty=member["empty"],
        deletion=member["deletion"],
        insertion=member["insertion"],
    )


def _hidden(member: Mapping[str, Mapping[str, Sequence[float]]]) -> checks.Hidden:
    return checks.Hidden(_scores(member["hidden"]), _scores(member["shown"]))


def _scores(rows: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {fill: tuple(row) for fill, row in rows.items()}


def _rect(edges: Sequence[float] | None) -> Rect | None:
    return Rect(*edges) if edges else None


def _write(path: Path, picture: bytes | None) -> None:
    """Writes a PNG as `path`'s ending says."""
    if picture is None:
        why = "explain(..., overlay=False) was asked for, the input was a tensor, or no label reached the threshold"
        raise ValueError(f"there is no overlay: {why}")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path: expected a name that ends in {join_names(FORMATS)}, got {show(path.name)}")
    if kind != "PNG":
        file = io.BytesIO()
        with Image.open(io.BytesIO(picture)) as opened:
            opened.convert("RGB").save(file, kind, quality=QUALITY)
        picture = file.getvalue()
    path.write_bytes(picture)


def _side_by_side(pictures: Sequence[bytes]) -> bytes:
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    width, height = opened[0].size
    whole = Image.new("RGB", (len(opened) * (width + GAP) - GAP, height), "white")
    for index, picture in enumerate(opened):
        whole.paste(picture, (index * (width + GAP), 0))
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()
