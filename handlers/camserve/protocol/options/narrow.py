"""Which values an option accepts of one archive: its classes, its methods, its layers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from camserve.core.config import METHOD_ALIASES, REFINECAM
from camserve.core.errors import RequestError
from camserve.core.messages import Layer
from camserve.core.served import Served
from camserve.core.text import join_names, show
from camserve.core.values import Values, choice, integer, parse_integer, read_list


def narrow_targets(served: Served) -> Values:
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
    return Values(accepts, read, {"anyOf": [index, label, several]}, _parse_value_target if values else parse_target)


def _parse_value_target(text: str) -> object:
    if is_list(text):
        return json.loads(text, parse_int=_keep_minus)
    return text.strip() if text.strip().startswith("-") else parse_integer(text)


def _keep_minus(text: str) -> int | str:
    return text if text.startswith("-") else int(text)


def narrow_methods(served: Served) -> Values:
    """The archive's methods; of the one that takes several layers, why it cannot be had where it cannot."""
    aliases = {alias: name for alias, name in METHOD_ALIASES.items() if name in served.methods}
    known = choice(served.methods, aliases)

    def read(value: object) -> Any:
        if value == REFINECAM and REFINECAM not in served.methods:
            message = f"method: {REFINECAM} cannot be had here: {_say_why_not(served)}; expected {known.accepts}"
            raise RequestError(400, "InvalidOption", message)
        return known.read(value)

    return replace(known, read=read)


def _say_why_not(served: Served) -> str:
    if served.scores == "none":
        return "it contrasts classes, and values are none"
    if len(served.layers) < 2:
        return "it takes several layers together, and this archive serves one (package.py --layers serves more)"
    return "it takes several layers together, and those of this archive cannot be, as its log says"


def narrow_layers(served: Served) -> Values:
    """One layer; or several, where a method takes them, in the order in which they run, however they came."""
    one = choice(served.layers)
    if REFINECAM not in served.methods:
        return replace(one, parse=_parse_layer)
    which = "them" if set(served.together) == set(served.layers) else join_names(served.together)
    accepts = f"{one.accepts}, or for {REFINECAM} a list of two of {which} or more"

    def read(value: object) -> Layer:
        if isinstance(value, str) and value in served.layers:
            return value
        names = value.split(",") if isinstance(value, str) else read_list(value)
        if not all(isinstance(name, str) for name in names):
            raise TypeError
        asked = {name.strip() for name in names}
        chosen = tuple(layer for layer in served.together if layer in asked)
        unknown = next((name for name in names if name.strip() not in chosen), None)
        if unknown is not None and len(names) > 1:
            raise RequestError(400, "InvalidOption", f"layer: expected {accepts}, got {show(unknown)} among them")
        if len(chosen) < 2:
            raise ValueError
        return chosen

    several = {"type": "array", "items": choice(served.together).schema, "minItems": 2, "uniqueItems": True}
    return Values(accepts, read, {"anyOf": [one.schema, several]}, _parse_layer)


def _parse_layer(text: str) -> object:
    return json.loads(text) if is_list(text) else text.strip()


def default_top_k(served: Served) -> int | None:
    """The most probable class, unless the threshold says which count."""
    return None if served.by_threshold else 1


def narrow_top_k(served: Served) -> Values:
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


def parse_target(text: str) -> object:
    """Reads a header's or a form field's text: an index, a JSON list, else a label."""
    return json.loads(text) if is_list(text) else parse_integer(text)


def is_list(text: str) -> bool:
    """Whether a text can only be meant as a JSON list."""
    stripped = text.strip()
    return stripped.startswith("[") and stripped.endswith("]")
