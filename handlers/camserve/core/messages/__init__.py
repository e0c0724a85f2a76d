"""The values that rooms hand to each other: what a request asks, and what it gets. All are frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from camserve.core.geometry import Contour, Inside, Rect
from camserve.core.messages.checks import Check

Protocol = Literal["plain", "v1", "v2"]
Media = Literal["json", "png", "jpeg", "webp", "npy"]

CONTENT_TYPES: Mapping[Media, str] = MappingProxyType(
    {
        "json": "application/json",
        "png": "image/png",
        "jpeg": "image/jpeg",
        "webp": "image/webp",
        "npy": "application/x-npy",
    }
)
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")
"""What a request's id may be: it is echoed in a header."""

PICTURES: frozenset[Media] = frozenset(("png", "jpeg", "webp"))


@dataclass(frozen=True)
class Encoded:
    """A picture's file as it came.

    Attributes:
        data: its bytes; whether they are a picture is not known yet.
        origin: what an error about them says of how they were received (`after base64 decoding of 812 characters`).
    """

    data: bytes
    origin: str = field(default="", compare=False)


Image = Encoded | NDArray[np.float32]
"""A picture's file, or a normalised tensor `[channels, H, W]`."""


@dataclass(frozen=True)
class Call:
    """One request as the host hands it over.

    Attributes:
        explain: an explanation is asked for, not only predictions.
        headers: names in lower case.
        fields: name to bytes, str or parsed JSON; a raw body is the field `body`.
        repeated: names of fields that came more than once, of which `fields` holds one.
        id: the request's, as its answer carries it; "" where the host has none.
    """

    explain: bool
    headers: Mapping[str, str]
    fields: Mapping[str, object]
    repeated: tuple[str, ...] = ()
    id: str = ""

    @property
    def named(self) -> str:
        """The id that the client gives its request (`x-request-id`); "" where it gives none, or none that can be one."""
        given = self.headers.get("x-request-id", "")
        return given if isinstance(given, str) and REQUEST_ID.fullmatch(given) else ""


Layer = str | tuple[str, ...]
"""A layer, or several that are taken together, in the order in which they run."""


def list_layers(layer: Layer) -> tuple[str, ...]:
    """Return the names of one layer, or of several."""
    return (layer,) if isinstance(layer, str) else layer


def name_layer(layer: Layer) -> str:
    """Return a layer's name; those of several with commas between, as answers have them and requests may."""
    return ",".join(list_layers(layer))


@dataclass(frozen=True)
class Options:
    """What is asked about one picture, every value checked.

    Attributes:
        targets: class indices, each once, `~index` for what lowers a value; empty: the `top_k` most probable classes.
        top_k: at most the number of classes; no meaning where `targets` are given. None: the most probable class, or where a
            threshold decides, the labels that reach it.
        media: of the answer.
        overlay: each explanation in a JSON answer carries its picture; False for every other media.
        opacity: of the colours, 0 to 1.
        check: the model is asked how far each heatmap is borne out.
        inside: a box in pixels of the original picture, or a mask of its size, of which each map's share is told.
        contours: levels of the heatmap, 0 to 1, whose contours are told.
    """

    targets: tuple[int, ...]
    method: str
    layer: Layer
    colormap: str
    opacity: float
    top_k: int | None = 1
    media: Media = "json"
    overlay: bool = False
    check: bool = False
    inside: Rect | Encoded | None = None
    contours: tuple[float, ...] = ()

    @property
    def maps(self) -> int:
        """How many heatmaps are asked for; how many labels reach a threshold is not known before, so one stands for them."""
        return len(self.targets) or self.top_k or 1


@dataclass(frozen=True)
class Item:
    """One picture, and what is asked about it."""

    image: Image
    options: Options


@dataclass(frozen=True)
class Output:
    """A V2 output that the client names; `binary` says how it wants it, None: as `Request.binary` says."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True)
class Request:
    """A request that can be answered.

    Attributes:
        items: one for `plain`, at least one for V1 and V2.
        id: V2's, to be echoed.
        outputs: V2's, the outputs asked for by name; empty: all.
        binary: V2's, whether outputs are sent in the binary extension where `Output.binary` is None.
    """

    protocol: Protocol
    explain: bool
    items: tuple[Item, ...]
    id: str | None = None
    outputs: tuple[Output, ...] = ()
    binary: bool = False


@dataclass(frozen=True)
class Page:
    """A browser's GET: it wants the inspector page."""


@dataclass(frozen=True)
class Reply:
    """An answer as the host sends it; header names are in lower case, their values ASCII on one line."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One class and its probability, 0 to 1; of scores that are values, the value."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Explanation:
    """One target's heatmap.

    Attributes:
        label: of the target; behind a `-` where the heatmap shows what lowers its value.
        heatmap: float32 `[h, w]` in [0, 1], at the layer's resolution.
        range: the map's own minimum and maximum; None where it is not finite.
        region: the box around its brightest part, in pixels of the original picture; None where there is none.
        warnings: `zero`, `constant` or `not_finite`: the heatmap is zeros, and says nothing.
        overlay: the picture with the heatmap over it, a PNG; None where it was not asked for.
        lowers: the heatmap shows what lowers the target's value, not what raises it.
        check: how far it is borne out, where that was asked for, and there is a map.
        inside: what of the map lies inside the area that was asked about, where there is a map.
        contours: of the heatmap, one for each level that was asked for, where there is a map.
    """

    target: int
    label: str
    probability: float
    heatmap: NDArray[np.float32] = field(repr=False, compare=False)
    range: tuple[float, float] | None
    region: Rect | None
    warnings: tuple[str, ...] = ()
    overlay: bytes | None = field(default=None, repr=False)
    lowers: bool = field(default=False, repr=False)
    check: Check | None = field(default=None, repr=False, compare=False)
    inside: Inside | None = None
    contours: tuple[Contour, ...] | None = field(default=None, repr=False)


BEYOND = ("check", "inside", "contours")
"""What an explanation tells only where it is asked for, by the options' names."""


@dataclass(frozen=True)
class ImageInfo:
    """The original picture's size, and the rectangle of it that reached the model, in pixels."""

    width: int
    height: int
    view: Rect | None


@dataclass(frozen=True)
class Answer:
    """What one item gets.

    Attributes:
        classes: most probable first.
        explanations: one for each target; none where no label reaches the threshold.
        image: None for a tensor.
        picture: the rendered picture where the media is `png`, `jpeg` or `webp`.
        scale: that picture's size relative to the original.
        layer: its name, see `name_layer`.
        predictions: what a handler's own `postprocess` made of the scores, JSON; None: made of `classes`.
        grid: (height, width) of the heatmaps, where there are none to tell it.
        asked: of `BEYOND` those that were asked for.
    """

    classes: tuple[Score, ...]
    explanations: tuple[Explanation, ...]
    image: ImageInfo | None
    method: str
    layer: str
    picture: bytes | None = None
    scale: float = 1.0
    predictions: object = None
    grid: tuple[int, int] = (0, 0)
    asked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelInfo:
    """Which model answers; `weights` is the start of a digest, `sha256:9f86d081884c`."""

    name: str
    version: str
    weights: str
