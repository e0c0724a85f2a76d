"""The options of a request: one table of them, and how they are read for one archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from camserve.core.config import KEYS, REFINECAM
from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Options, list_layers
from camserve.core.served import Served
from camserve.core.text import find_nearest, join_names, show
from camserve.core.values import FLAG, LEVELS, Values, choice
from camserve.pictures.files.formats import sniff
from camserve.protocol.accept import negotiate, no_picture
from camserve.protocol.body import AREA
from camserve.protocol.options.narrow import (
    default_top_k,
    is_list,
    narrow_layers,
    narrow_methods,
    narrow_targets,
    narrow_top_k,
    parse_target,
)

HEADER_PREFIX = "x-explain-"

Spelling = Literal["json", "text", "parameter"]


@dataclass(frozen=True)
class Given:
    """An option as it came: a JSON value, the text of a header or form field, or a V2 parameter (lists as JSON strings)."""

    value: object
    spelling: Spelling = "json"


@dataclass(frozen=True)
class Option:
    """One option of a request: everything that parsing, the API's document, the client and the command line know of it.

    Attributes:
        name: as clients write it.
        meaning: a phrase, in lower case.
        values: what it accepts of any archive, as far as a client can know.
        narrow: makes what one archive accepts; None: `values`.
        default: of one archive; None: none that can be written down.
        field: of `Options`; empty: `name`.
        in_text: says how text spells it, where a list of values may be given; empty: no list may.
        labels: whether its values may be labels, which text could take for numbers and lists.
    """

    name: str
    meaning: str
    values: Values
    narrow: Callable[[Served], Values] | None = None
    default: Callable[[Served], Any] | None = None
    field: str = ""
    in_text: str = ""
    labels: bool = False

    def of(self, served: Served) -> Option:
        """Narrows the accepted values to those of one archive."""
        return replace(self, values=self.narrow(served)) if self.narrow else self


_CLASS = Values("a class index, a label, or a list of them", lambda value: value, parse=parse_target)
_NAMES = Values(f"a name, or for {REFINECAM} several with commas between", str, {"type": "string"}, parse=str)

OPTIONS = (
    Option(
        "target",
        "a class index, a label, or a list of them; by default the most probable class, or each label that reaches the "
        "threshold; of a value, -index or -label is what lowers it",
        _CLASS,
        narrow=narrow_targets,
        field="targets",
        in_text="a decimal integer is a class index, a JSON list holds indices and labels, the rest is a label",
        labels=True,
    ),
    Option(
        "top_k",
        "explain the k most probable classes; not together with target",
        KEYS["max_targets"].values,
        narrow=narrow_top_k,
        default=default_top_k,
    ),
    Option(
        "method",
        "how the heatmap is computed; by default the archive's",
        KEYS["method"].values,
        narrow=narrow_methods,
        default=lambda served: served.config.method,
    ),
    Option(
        "layer",
        "layer whose activations make the heatmap; by default the archive's first; with method refinecam two or more, by default "
        "all of the archive's",
        _NAMES,
        narrow=narrow_layers,
        default=lambda served: served.default_layer,
        in_text="a name, or several: a JSON list, or with commas between",
    ),
    Option("format", "of the answer; beats Accept", choice(tuple(CONTENT_TYPES)), field="media"),
    Option(
        "check",
        "the model is asked again with the brightest parts hidden, and with only these shown: the answer says how far each "
        "heatmap is borne out",
        FLAG,
        default=lambda served: served.config.checks,
    ),
    Option(
        "inside",
        "what of each map lies inside a box, [left, top, right, bottom] in the picture's pixels, or inside a mask: a PNG of the "
        "picture's size in base64, black outside and of one other colour inside",
        AREA,
        in_text="a JSON list is a box, the rest a mask in base64",
    ),
    Option(
        "contours",
        "levels of the heatmap whose contours are told, as polygons in the picture's pixels, and drawn",
        LEVELS,
        in_text="a number, or a JSON list of them",
    ),
    Option("overlay", "each explanation in the JSON carries its picture", FLAG, default=lambda _: False),
    Option(
        "colormap",
        "colours of the heatmap in pictures; by default the archive's",
        KEYS["colormap"].values,
        default=lambda served: served.config.colormap,
    ),
    Option(
        "opacity",
        "opacity of the heatmap over the picture, 0 to 1; by default the archive's",
        KEYS["opacity"].values,
        default=lambda served: served.config.opacity,
    ),
)
"""Every option. A new one takes a row here, and a field in `Options`."""


class OptionReader:
    """Reads and checks options for one archive.

    Args:
        served: what the archive offers.
    """

    def __init__(self, served: Served) -> None:
        self.table: Mapping[str, Option] = {option.name: option.of(served) for option in OPTIONS}
        defaults = {option.field or option.name: option.default(served) for option in OPTIONS if option.default}
        self.defaults = Options(targets=(), **defaults)
        self.scores = served.scores
        self._first, self._together = served.layers[0], served.together

    def from_headers(self, headers: Mapping[str, str]) -> dict[str, Given]:
        """Collects the `X-Explain-*` headers. A label may be sent in UTF-8 or in Latin-1.

        Args:
            headers: names in lower case; values as HTTP servers hand them over, each byte one character, or decoded.

        Raises:
            RequestError: 400 `UnknownOption`.
        """
        given: dict[str, Given] = {}
        for header, value in headers.items():
            if header.startswith(HEADER_PREFIX):
                name = header.removeprefix(HEADER_PREFIX).replace("-", "_")
                self._check_name(name, header)
                given[name] = Given(_utf8(value), "text")
        return given

    def merge(self, headers: Mapping[str, Given], own: Mapping[str, Given]) -> dict[str, Given]:
        """Lays the body's `own` options over the headers'. `target` and `top_k` are one choice, which either makes."""
        chosen = {"target", "top_k"} if own.keys() & {"target", "top_k"} else set()
        return {**{name: given for name, given in headers.items() if name not in chosen}, **own}

    def from_values(self, values: Mapping[str, object], spelling: Spelling) -> dict[str, Given]:
        """Collects options by name.

        Raises:
            RequestError: 400 `UnknownOption`.
        """
        for name in values:
            self._check_name(name, name)
        return {name: Given(value, spelling) for name, value in values.items()}

    def _check_name(self, name: str, came: str) -> None:
        if name in self.table:
            return
        near = find_nearest(name, self.table, 1)
        hint = f"did you mean {near[0]}? The" if near else "the"
        raise RequestError(400, "UnknownOption", f"unknown option {show(came)}; {hint} options are {join_names(self.table)}")

    def read(self, given: Mapping[str, Given], accept: str | None, tensor: bool) -> Options:
        """Reads all options of one picture.

        Args:
            given: by name, the body's over the headers'.
            accept: the `Accept` header, None where it has no say.
            tensor: the input is a tensor, so there is no picture to draw on.

        Raises:
            RequestError: 400 `InvalidOption`, `UnknownLabel`, `NoPicture`; 406 `NotAcceptable`.
        """
        values = {self.table[name].field or name: self._read_value(name, option) for name, option in given.items()}
        self._match_layer(values)
        if "target" in given and "top_k" in given:
            raise RequestError(400, "InvalidOption", "target, top_k: expected one of the two, got both")
        media = values["media"] = values["media"] if "media" in values else negotiate(accept, tensor)
        overlay = values.pop("overlay", False)
        if tensor and media in PICTURES:
            raise no_picture(f"format: got {show(media)}")
        if tensor and overlay and media == "json":
            raise no_picture("overlay: got true")
        for name in ("inside", "contours"):
            if tensor and values.get(name):
                raise no_picture(name)
        if media == "npy" and values.get("contours"):
            raise RequestError(400, "InvalidOption", "contours: an array holds none; expected format json or a picture, got npy")
        return replace(self.defaults, overlay=overlay and media == "json", **values)

    def _match_layer(self, values: dict[str, Any]) -> None:
        """Give a method its layers, and several layers the method that takes them together, where only one of both is given."""
        several = isinstance(values.get("layer"), tuple)
        method = values.setdefault("method", REFINECAM if several else self.defaults.method)
        layers = list_layers(values.setdefault("layer", self._together if method == REFINECAM else self._first))
        if method == REFINECAM and len(layers) < 2:
            way = f"leave layer out for all of them, name several of {join_names(self._together)}, or give another method"
            raise RequestError(400, "InvalidOption", f"layer: {method} takes two layers or more, got {show(layers[0])}; {way}")
        if method != REFINECAM and len(layers) > 1:
            message = f"layer: {method} takes one layer, got {len(layers)}; only {REFINECAM} takes several together"
            raise RequestError(400, "InvalidOption", message)

    def _read_value(self, name: str, given: Given) -> Any:
        option = self.table[name]
        try:
            return option.values.read(_as_json(option, given))
        except (TypeError, ValueError, RecursionError):
            message = f"{name}: expected {option.values.accepts}, got {show(given.value)}"
            raise RequestError(400, "InvalidOption", message) from None


def _as_json(option: Option, given: Given) -> object:
    value = given.value
    if isinstance(value, (bytes, bytearray)) and sniff(value) == "PNG":
        return value
    if given.spelling == "text" and isinstance(value, (bytes, bytearray, str)):
        return option.values.parse(value if isinstance(value, str) else bytes(value).decode())
    if given.spelling == "parameter" and option.in_text and isinstance(value, str) and is_list(value):
        return option.values.parse(value)
    return value


def _utf8(value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except ValueError:
        return value
