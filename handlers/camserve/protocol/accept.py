"""The media type of an answer, from `Accept` (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Media
from camserve.core.text import join_names, show

_LONGEST = 4096
_NAME = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(rf"\*/\*|(?!\*/){_NAME}/{_NAME}")
_PARAMETER = re.compile(rf"q=(?:0|1|0?\.[0-9]+|0\.|1\.0*)|(?!q=){_NAME}={_NAME}")
_ALIASES = {"image/jpg": "image/jpeg", "*": "*/*"}
"""Two slips of old clients, read as they are meant; the second is that of Java's `HttpURLConnection`."""


def parse_accept(text: str) -> Mapping[str, float]:
    """Reads `Accept`: its media ranges in lower case, each with its weight from 0 to 1. An empty value accepts everything.

    Parameters other than `q` are checked and ignored, since no answer differs by one.

    Raises:
        ValueError: the value does not follow the grammar, or is longer than 4096 characters.
    """
    if len(text) > _LONGEST:
        raise ValueError
    weights: dict[str, float] = {}
    for element in _QUOTED.sub("quoted", text).lower().split(","):
        name, *parameters = (part.strip(" \t") for part in element.split(";"))
        if not name and not parameters:
            continue
        name = _ALIASES.get(name, name)
        if not _RANGE.fullmatch(name) or not all(map(_PARAMETER.fullmatch, filter(None, parameters))):
            raise ValueError
        weight = [1.0, *(float(parameter[2:]) for parameter in parameters if parameter.startswith("q="))][-1]
        weights[name] = max(weight, weights.get(name, 0.0))
    return weights or {"*/*": 1.0}


def _weigh(content_type: str, ranges: Mapping[str, float]) -> float:
    """How welcome a type is: the weight of the most specific range that holds it, 0 where none does."""
    names = (content_type, content_type.partition("/")[0] + "/*", "*/*")
    return next((ranges[name] for name in names if name in ranges), 0.0)


def negotiate(text: str | None, tensor: bool = False) -> Media:
    """Chooses the media of an explanation's answer by an `Accept` header (None: absent, as good as `*/*`).

    The most welcome type wins; ties go to JSON, then to the order of `CONTENT_TYPES`. A tensor has no picture, so only
    JSON and arrays are offered for it.

    Raises:
        RequestError: 406 `NotAcceptable`, nothing on offer is acceptable or the header cannot be parsed; 400 `NoPicture`,
            only pictures are acceptable and the input is a tensor.
    """
    if text is None:
        return "json"
    offers = [media for media in CONTENT_TYPES if not (tensor and media in PICTURES)]
    try:
        ranges = parse_accept(text)
    except ValueError:
        raise _refusal(f"accept: cannot be parsed: {show(text)}", offers) from None
    weights = {media: _weigh(content_type, ranges) for media, content_type in CONTENT_TYPES.items()}
    best = max(offers, key=weights.__getitem__)
    if weights[best] > 0:
        return best
    if any(weights.values()):
        raise no_picture(f"accept: {show(text)}")
    raise _refusal(f"accept: nothing on offer matches {show(text)}", offers)


def no_picture(asked: str) -> RequestError:
    """Makes the 400 `NoPicture`: `asked` says what was asked of a tensor."""
    return RequestError(
        400, "NoPicture", f"{asked}, but the input is a tensor, which has no picture to draw on; ask for json or npy"
    )


def wants_page(text: str | None) -> bool:
    """Tells a browser: `Accept` prefers `text/html` to JSON, and likes it no less than any other type on offer."""
    try:
        ranges = parse_accept(text or "")
    except ValueError:
        return False
    page = _weigh("text/html", ranges)
    weights = [_weigh(content_type, ranges) for content_type in CONTENT_TYPES.values()]
    return page > _weigh(CONTENT_TYPES["json"], ranges) and page >= max(weights)


def _refusal(message: str, offers: Iterable[Media]) -> RequestError:
    return RequestError(406, "NotAcceptable", f"{message}; on offer are {join_names(CONTENT_TYPES[media] for media in offers)}")
