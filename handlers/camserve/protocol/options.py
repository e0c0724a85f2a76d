"""The options of a request: their names, what each accepts, and how headers, fields and JSON spell them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from camserve.core.config import KEYS, METHODS
from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Options
from camserve.core.served import Served
from camserve.core.text import listed, nearest, shown
from camserve.protocol.accept import negotiate, no_picture

HEADER_PREFIX = "x-explain-"

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FLAGS = {"true": True, "false": False}

Spelling = Literal["json", "text", "parameter"]


@dataclass(frozen=True)
class Given:
    """An option as it came: a JSON value, the text of a header or form field, or a V2 parameter (lists as JSON strings)."""

    value: object
    spelling: Spelling = "json"


@dataclass(frozen=True)
class Option:
    """One option: what it accepts, in words, and how a value is read.

    `read` takes a JSON value and returns it as `Options` holds it, or raises ValueError, TypeError or RequestError.
    `parse` turns text into a JSON value; what it does not recognise stays text.
    """

    accepts: str
    read: Callable[[Any], Any]
    parse: Callable[[str], object] = str.strip


class OptionReader:
    """Reads and checks options for one model.

    Args:
        served: what the model's archive offers.
    """

    def __init__(self, served: Served) -> None:
        config, labels, layers = served.config, served.labels, served.layers
        self._config = config
        self._labels = labels
        most = config.max_targets
        target = f"a class index from 0 to {len(labels) - 1}, a label, or a list of 1 to {most} of them"
        self.table: Mapping[str, Option] = {
            "target": Option(target, self._read_targets, _parse_target),
            "top_k": Option(f"a whole number from 1 to {most}", self._read_top_k, _parse_integer),
            "method": _choice(METHODS),
            "layer": _choice(layers),
            "format": _choice(tuple(CONTENT_TYPES)),
            "overlay": Option("true or false", _read_flag, lambda text: _FLAGS.get(text.strip().lower(), text)),
            "colormap": Option(KEYS["colormap"].accepts, KEYS["colormap"].read),
            "opacity": Option(KEYS["opacity"].accepts, KEYS["opacity"].read, _parse_number),
        }
        self.defaults = Options(
            targets=(),
            method=config.method,
            layer=layers[0],
            colormap=config.colormap,
            opacity=config.opacity,
        )

    def from_headers(self, headers: Mapping[str, str]) -> dict[str, Given]:
        """The `X-Explain-*` headers. A label may be sent in UTF-8 or in Latin-1.

        Args:
            headers: names in lower case; values as HTTP servers hand them over, each byte one character, or decoded.
        """
        given: dict[str, Given] = {}
        for header, value in headers.items():
            if header.startswith(HEADER_PREFIX):
                name = header.removeprefix(HEADER_PREFIX).replace("-", "_")
                self._check_name(name, header)
                given[name] = Given(_utf8(value), "text")
        return given

    def merged(self, headers: Mapping[str, Given], own: Mapping[str, Given]) -> dict[str, Given]:
        """The body's `own` options over the headers': `target` and `top_k` are one choice, which either makes."""
        chosen = {"target", "top_k"} if own.keys() & {"target", "top_k"} else set()
        return {**{name: given for name, given in headers.items() if name not in chosen}, **own}

    def named(self, values: Mapping[str, object], spelling: Spelling) -> dict[str, Given]:
        """Options by name; raises RequestError 400 `UnknownOption` for a name that is none."""
        for name in values:
            self._check_name(name, name)
        return {name: Given(value, spelling) for name, value in values.items()}

    def _check_name(self, name: str, came: str) -> None:
        if name in self.table:
            return
        near = nearest(name, self.table, 1)
        hint = f"did you mean {near[0]}? The" if near else "the"
        raise RequestError(400, "UnknownOption", f"unknown option {shown(came)}; {hint} options are {listed(self.table)}")

    def read(self, given: Mapping[str, Given], accept: str | None, tensor: bool) -> Options:
        """All options of one picture.

        Args:
            given: by name, the body's over the headers'.
            accept: the `Accept` header, None where it has no say.
            tensor: the input is a tensor, so there is no picture to draw on.

        Raises:
            RequestError: 400 `InvalidOption`, `UnknownLabel`, `NoPicture`; 406 `NotAcceptable`.
        """
        values = {name: self._read_value(name, option) for name, option in given.items()}
        if "target" in values and "top_k" in values:
            raise RequestError(400, "InvalidOption", "target, top_k: expected one of the two, got both")
        media = values["format"] if "format" in values else negotiate(accept, tensor)
        overlay = values.get("overlay", False)
        if tensor and media in PICTURES:
            raise no_picture(f"format: got {shown(media)}")
        if tensor and overlay and media == "json":
            raise no_picture("overlay: got true")
        return Options(
            targets=values.get("target", ()),
            top_k=values.get("top_k", self.defaults.top_k),
            method=values.get("method", self.defaults.method),
            layer=values.get("layer", self.defaults.layer),
            media=media,
            overlay=overlay and media == "json",
            colormap=values.get("colormap", self.defaults.colormap),
            opacity=values.get("opacity", self.defaults.opacity),
        )

    def _read_value(self, name: str, given: Given) -> Any:
        option = self.table[name]
        try:
            return option.read(_as_json(name, option, given))
        except (TypeError, ValueError, RecursionError):
            message = f"{name}: expected {option.accepts}, got {shown(given.value)}"
            raise RequestError(400, "InvalidOption", message) from None

    def _read_targets(self, value: object) -> tuple[int, ...]:
        several = value if isinstance(value, list) else [value]
        if not 1 <= len(several) <= self._config.max_targets:
            raise ValueError
        return tuple(dict.fromkeys(self._read_target(target) for target in several))

    def _read_target(self, value: object) -> int:
        return self._labels.index(value if isinstance(value, str) else _read_integer(value))

    def _read_top_k(self, value: object) -> int:
        count = _read_integer(value)
        if not 1 <= count <= self._config.max_targets:
            raise ValueError
        return min(count, len(self._labels))


def _as_json(name: str, option: Option, given: Given) -> object:
    value = given.value
    if given.spelling == "text" and isinstance(value, (bytes, bytearray, str)):
        return option.parse(value if isinstance(value, str) else bytes(value).decode())
    if given.spelling == "parameter" and name == "target" and isinstance(value, str) and _is_list(value):
        return json.loads(value)
    return value


def _utf8(value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except ValueError:
        return value


def _is_list(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("[") and stripped.endswith("]")


def _parse_target(text: str) -> object:
    return json.loads(text) if _is_list(text) else _parse_integer(text)


def _parse_integer(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text.strip()) else text.strip()


def _parse_number(text: str) -> object:
    return float(text) if _NUMBER.fullmatch(text.strip()) else text


def _read_integer(value: object) -> int:
    """3 and 3.0 are the same JSON number; true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _choice(names: tuple[str, ...]) -> Option:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return Option(listed(names), read)
