"""The media type of an answer, from `Accept` (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from camserve.core.errors import RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Media
from camserve.core.text import listed, shown

_LONGEST = 4096
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WEIGHT = re.compile(r"0|1|0?\.[0-9]+|0\.|1\.0*")
_ALIASES = {"image/jpg": "image/jpeg", "*": "*/*"}


@dataclass(frozen=True)
class Accept:
    """A parsed `Accept`: media ranges in lower case, each with its weight, 0 to 1.

    Parameters of a range other than `q` are ignored: no answer differs by one. Two slips of old clients are read as they
    are meant: `*` for `*/*` (Java's `HttpURLConnection`) and `image/jpg` for `image/jpeg`.
    """

    ranges: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Accept:
        """Reads the header's value; nothing at all accepts everything.

        Raises:
            ValueError: the value does not follow the grammar.
        """
        if len(text) > _LONGEST:
            raise ValueError
        elements = _QUOTED.sub("quoted", text).split(",")
        ranges = tuple(_read_range(element) for element in elements if element.strip(" \t"))
        return cls(ranges or (("*/*", 1.0),))

    def weight(self, content_type: str) -> float:
        """How welcome `content_type` is: the weight of the most specific range that holds it, 0 where none does."""
        for name in (content_type, content_type.partition("/")[0] + "/*", "*/*"):
            weights = [weight for accepted, weight in self.ranges if accepted == name]
            if weights:
                return max(weights)
        return 0.0


def _read_range(element: str) -> tuple[str, float]:
    name, *parameters = (part.strip(" \t") for part in element.lower().split(";"))
    name = _ALIASES.get(name, name)
    main, slash, sub = name.partition("/")
    if not slash or not _TOKEN.fullmatch(main) or not _TOKEN.fullmatch(sub) or (main == "*" and sub != "*"):
        raise ValueError
    weight = 1.0
    for parameter in filter(None, parameters):
        key, _, value = parameter.partition("=")
        if not _TOKEN.fullmatch(key) or not _TOKEN.fullmatch(value):
            raise ValueError
        if key == "q":
            if not _WEIGHT.fullmatch(value):
                raise ValueError
            weight = float(value)
    return name, weight


def negotiate(text: str | None, tensor: bool = False) -> Media:
    """The media of an explanation's answer for an `Accept` header (None: absent, as good as `*/*`).

    The most welcome type wins; ties go to JSON, then to the order of `CONTENT_TYPES`. A tensor has no picture, so only
    JSON and arrays are offered for it.

    Raises:
        RequestError: 406 `NotAcceptable`, nothing on offer is acceptable or the header cannot be parsed; 400 `NoPicture`,
            only pictures are acceptable and the input is a tensor.
    """
    offers = [media for media in CONTENT_TYPES if not (tensor and media in PICTURES)]
    if text is None:
        return "json"
    try:
        accept = Accept.parse(text)
    except ValueError:
        raise _refusal(f"accept: cannot be parsed: {shown(text)}", offers) from None
    best = max(offers, key=lambda media: accept.weight(CONTENT_TYPES[media]))
    if accept.weight(CONTENT_TYPES[best]) > 0:
        return best
    if any(accept.weight(CONTENT_TYPES[media]) > 0 for media in CONTENT_TYPES):
        raise no_picture(f"accept: {shown(text)}")
    raise _refusal(f"accept: nothing on offer matches {shown(text)}", offers)


def no_picture(asked: str) -> RequestError:
    """400 `NoPicture`: `asked` says what was asked of a tensor."""
    return RequestError(
        400, "NoPicture", f"{asked}, but the input is a tensor, which has no picture to draw on; ask for json or npy"
    )


def wants_page(text: str | None) -> bool:
    """A browser: `Accept` prefers `text/html` to JSON, and to nothing less than any other type on offer."""
    try:
        accept = Accept.parse(text or "")
    except ValueError:
        return False
    page = accept.weight("text/html")
    return page > accept.weight("application/json") and page >= max(map(accept.weight, CONTENT_TYPES.values()))


def _refusal(message: str, offers: Iterable[Media]) -> RequestError:
    return RequestError(406, "NotAcceptable", f"{message}; on offer are {listed(CONTENT_TYPES[media] for media in offers)}")
