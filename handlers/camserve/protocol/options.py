"""The options of a request: one table of them, and how they are read for one archive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from camserve.core.config import KEYS, METHOD_ALIASES
from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Options
from camserve.core.served import Served
from camserve.core.text import find_nearest, join_names, show
from camserve.core.values import FLAG, LEVELS, Values, choice, integer, parse_integer
from camserve.pictures.files.formats import sniff
from camserve.protocol.accept import negotiate, no_picture
from camserve.protocol.body import AREA

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


def _targets(served: Served) -> Values:
    """Of scores that are values, what lowers one is asked for behind a `-`, and read as `~index`.

    JSON's number -0 is 0, so what lowers the first value is the text `-0` there; a header's or a field's `-0` is text too.
    """
    labels, most, values = served.labels, served.config.max_targets, served.scores == "none"

    def read_one(value: object) -> int:
        if isinstance(value, str):
            return labels.index_or_lowered(value) if values else labels.index(value)
        index = _read_integer(value)
        if values and math.copysign(1, value) < 0:  # type: ignore[arg-type]
            message = f'target: for what lowers a value send the text "{value}" or "-{labels[0]}", got the number {value}'
            raise RequestError(400, "InvalidOption", message)
        return labels.index(index)

    def read(value: object) -> tuple[int, ...]:
        several = value if isinstance(value, list) else [value]
        if not 1 <= len(several) <= most:
            raise ValueError
        return tuple(dict.fromkeys(read_one(each) for each in several))

    index = {"type": "integer", "minimum": 0, "maximum": len(labels) - 1}
    label = {"type": "string", "format": "label", "examples": [labels[0], *([f"-{labels[0]}"] if values else [])]}
    several = {"type": "array", "items": {"anyOf": [index, label]}, "minItems": 1, "maxItems": most}
    lowered = ", behind a - and as text for what lowers its value" if values else ""
    accepts = f"a class index from 0 to {len(labels) - 1}, a label{lowered}, or a list of 1 to {most} of them"
    return Values(accepts, read, {"anyOf": [index, label, several]}, _parse_value_target if values else _parse_target)


def _parse_value_target(text: str) -> object:
    if _is_list(text):
        return json.loads(text, parse_int=_keep_minus)
    return text.strip() if text.strip().startswith("-") else parse_integer(text)


def _keep_minus(text: str) -> int | str:
    return text if text.startswith("-") else int(text)


def _methods(served: Served) -> Values:
    aliases = {alias: name for alias, name in METHOD_ALIASES.items() if name in served.methods}
    return choice(served.methods, aliases)


def _default_top_k(served: Served) -> int | None:
    return None if served.by_threshold else 1


def _top_k(served: Served) -> Values:
    """Up to `max_targets`; more than the model has classes are all of them."""
    counts = integer(1, served.config.max_targets)
    return replace(counts, read=lambda value: min(counts.read(_read_integer(value)), len(served.labels)))


def _read_integer(value: object) -> int:
    """Reads a whole number: 3 and 3.0 are the same in JSON, true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _parse_target(text: str) -> object:
    return json.loads(text) if _is_list(text) else parse_integer(text)


def _is_list(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("[") and stripped.endswith("]")


_CLASS = Values("a class index, a label, or a list of them", lambda value: value, parse=_parse_target)
_NAME = Values("a name", str, {"type": "string"}, parse=str)

OPTIONS = (
    Option(
        "target",
        "a class index, a label, or a list of them; by default the most probable class, or each label that reaches the "
        "threshold; of a value, -index or -label is what lowers it",
        _CLASS,
        narrow=_targets,
        field="targets",
        in_text="a decimal integer is a class index, a JSON list holds indices and labels, the rest is a label",
        labels=True,
    ),
    Option(
        "top_k",
        "explain the k most probable classes; not together with target",
        KEYS["max_targets"].values,
        narrow=_top_k,
        default=_default_top_k,
    ),
    Option(
        "method",
        "how the heatmap is computed; by default the archive's",
        KEYS["method"].values,
        narrow=_methods,
        default=lambda served: served.config.method,
    ),
    Option(
        "layer",
        "layer whose activations make the heatmap; by default the archive's first",
        _NAME,
        narrow=lambda served: choice(served.layers),
        default=lambda served: served.layers[0],
    ),
    Option("format", "of the answer; beats Accept", choice(tuple(CONTENT_TYPES)), field="media"),
    Option(
        "check",
        "the model is asked again with the brightest parts hidden, and with only these shown: the answer says how far each "
        "heatmap is borne out",
        FLAG,
        default=lambda _: False,
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
    if given.spelling == "parameter" and option.in_text and isinstance(value, str) and _is_list(value):
        return option.values.parse(value)
    return value


def _utf8(value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except ValueError:
        return value
