"""Options in the query string: below the body's, above those of headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from camserve.core.errors import RequestError
from camserve.core.text import show

MAX_OPTIONS = 32
PREFIX = "x-explain-"
CHOICE = ("x-explain-target", "x-explain-top-k")
"""Headers of one choice: where the query makes it, neither counts."""


def add_query(headers: Mapping[str, Any], query: bytes) -> dict[str, Any]:
    """Let the query's options beat those of headers, as headers; the archive's parser reads them, and lets the body's beat both.

    Raises:
        RequestError: 400, the query gives one option twice, or gives too many.
    """
    options = read_query(query)
    if not options:
        return dict(headers)
    dropped = options.keys() | (set(CHOICE) if options.keys() & set(CHOICE) else set())
    return {name: value for name, value in headers.items() if name.lower() not in dropped} | options


def read_query(query: bytes) -> dict[str, str]:
    """Read the options by the names of their headers; one without a value has the empty text, which no option accepts.

    Raises:
        RequestError: 400.
    """
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_OPTIONS)
    except ValueError:
        raise RequestError(400, "InvalidOption", f"the query has more than {MAX_OPTIONS} options") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        header = PREFIX + name.replace("_", "-").lower()
        if header in options:
            message = f"the query gives the option {show(name)} twice; several targets go as target=[1,2]"
            raise RequestError(400, "InvalidOption", message)
        options[header] = value
    return options
