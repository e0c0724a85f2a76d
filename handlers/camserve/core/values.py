"""Which values a setting or a request's option accepts: in words, as JSON Schema, and how one is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from camserve.core.text import join_names

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HOST = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class Values:
    """A set of accepted values.

    Attributes:
        accepts: the set in words, for messages.
        read: takes a value of JSON or YAML and returns it as the code uses it; raises ValueError or TypeError for others.
        schema: the set as JSON Schema (2020-12).
        parse: turns text into a JSON value; text that it does not recognise stays text.
    """

    accepts: str
    read: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=dict)
    parse: Callable[[str], Any] = str.strip


def integer(low: int, high: int) -> Values:
    """Whole numbers from `low` to `high`, both included; neither 3.0 nor true is one."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Values(f"a whole number from {low} to {high}", read, schema, parse_integer)


def number(low: float, high: float) -> Values:
    """Numbers from `low` to `high`, both included, read as floats."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError
        return float(value)

    schema = {"type": "number", "minimum": low, "maximum": high}
    return Values(f"a number from {low:g} to {high:g}", read, schema, _parse_number)


def numbers(accepts: str, low: float = -math.inf, high: float = math.inf) -> Values:
    """A list of finite numbers from `low` to `high`, or one of them alone, read as a tuple of floats."""

    def read(value: Any) -> tuple[float, ...]:
        several = (value,) if isinstance(value, (int, float)) else read_list(value)
        if not several or any(isinstance(each, (bool, str)) for each in several):
            raise TypeError
        result = tuple(float(each) for each in several)
        if not all(math.isfinite(each) and low <= each <= high for each in result):
            raise ValueError
        return result

    return Values(accepts, read)


def choice(names: Sequence[str], aliases: Mapping[str, str] = MappingProxyType({})) -> Values:
    """One of these names, as it stands, or an alias, which is read as the name that it stands for."""

    def read(value: Any) -> str:
        name = aliases.get(value, value)
        if name not in names:
            raise ValueError
        return str(name)

    return Values(join_names(names), read, {"type": "string", "enum": [*names, *aliases]})


def choices(names: Sequence[str]) -> Values:
    """A list of at least one of these names, or one of them alone; read as a tuple that holds each once."""

    def read(value: Any) -> tuple[str, ...]:
        chosen = read_list(value)
        if not chosen or not set(chosen) <= set(names):
            raise ValueError
        return tuple(dict.fromkeys(chosen))

    return Values(f"a list of {join_names(names)}", read)


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _parse_flag(text: str) -> bool | str:
    return _FLAGS.get(text.strip().lower(), text)


FLAG = Values("true or false", _read_flag, {"type": "boolean"}, _parse_flag)


def read_list(value: Any) -> tuple[Any, ...]:
    """Reads a list, or a string as the list of it alone. A mapping is none, though it could be read as its keys."""
    if not isinstance(value, (str, list, tuple)):
        raise TypeError
    return (value,) if isinstance(value, str) else tuple(value)


def parse_integer(text: str) -> int | str:
    """Turns a decimal integer into a number; other text stays, without the space around it."""
    return int(text) if _INTEGER.fullmatch(text.strip()) else text.strip()


def _parse_number(text: str) -> float | str:
    return float(text) if _NUMBER.fullmatch(text.strip()) else text


def parse_numbers(text: str) -> Any:
    """Turns a JSON list or a number into that; other text stays, without the space around it."""
    try:
        return json.loads(text) if text.strip().startswith("[") else _parse_number(text.strip())
    except ValueError:
        return text.strip()


MOST_LEVELS = 5
"""Contours of one heatmap."""


def _read_levels(value: Any) -> tuple[float, ...]:
    levels: tuple[float, ...] = _BETWEEN.read(value)
    if len(levels) > MOST_LEVELS:
        raise ValueError
    return tuple(dict.fromkeys(levels))


_BETWEEN = numbers("", 0.01, 0.99)
_LEVEL = {"type": "number", "minimum": 0.01, "maximum": 0.99}
LEVELS = Values(
    f"a number from 0.01 to 0.99, or a list of 1 to {MOST_LEVELS} of them",
    _read_levels,
    {"anyOf": [_LEVEL, {"type": "array", "items": _LEVEL, "minItems": 1, "maxItems": MOST_LEVELS}]},
    parse_numbers,
)


def read_hosts(value: Any) -> tuple[str, ...] | None:
    """Reads host names, `.example.com` for all below it, or `*`, in lower case.

    Raises:
        ValueError, TypeError: it holds anything else, a port say.
    """
    if value is None:
        return None
    names = [name.lower().removesuffix(".") for name in read_list([value] if isinstance(value, str) else value)]
    if not all(name == "*" or _HOST.fullmatch(name) for name in names):
        raise ValueError
    return tuple(dict.fromkeys(names))


HOSTS = Values("names such as vision.example.com, .example.com for all below it, or null", read_hosts)


SIDE, BEFORE = integer(1, 8192), integer(0, 8192)


def read_names(value: Any) -> tuple[str, ...]:
    """Reads names, each once.

    Raises:
        ValueError, TypeError: it is anything else.
    """
    chosen = read_list(value)
    if not all(isinstance(name, str) and name for name in chosen):
        raise ValueError
    return tuple(dict.fromkeys(chosen))


def read_size(value: Any) -> int | tuple[int, int] | None:
    """Reads a size in pixels: a side, (height, width), or None.

    Raises:
        ValueError, TypeError: it is anything else.
    """
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        height, width = value
        return SIDE.read(height), SIDE.read(width)
    side: int = SIDE.read(value)
    return side


def read_grid(value: Any) -> tuple[int, ...] | None:
    """Reads rows and columns of tokens, and how many tokens stand before them, or None.

    Raises:
        ValueError, TypeError: it is anything else.
    """
    if value is None:
        return None
    rows, columns, *before = read_list(value)
    if len(before) > 1:
        raise ValueError
    return SIDE.read(rows), SIDE.read(columns), *map(BEFORE.read, before)


def read_output(value: Any) -> int | str | None:
    """Reads which of a model's outputs holds the scores: its place, its name, or None.

    Raises:
        ValueError, TypeError: it is anything else.
    """
    known = value is None or (isinstance(value, (int, str)) and not isinstance(value, bool) and value != "")
    if not known or (isinstance(value, int) and value < 0):
        raise ValueError
    return value  # type: ignore[no-any-return]


def read_optional_flag(value: Any) -> bool | None:
    """Reads true, false or None.

    Raises:
        ValueError, TypeError: it is anything else.
    """
    return None if value is None else FLAG.read(value)
