"""Reads `Host`, by which a server is asked, and `Accept`, the media type of an answer (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from camserve.core.config import Config
from camserve.core.errors import ConfigError, RequestError
from camserve.core.messages import CONTENT_TYPES, PICTURES, Media
from camserve.core.text import join_names, show
from camserve.core.values import read_hosts

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
HOSTS = "CAMSERVE_ALLOWED_HOSTS"
"""The variable by which a server tells its workers the host names that it may be asked by."""

_ALWAYS = ("localhost", ".localhost", "host.docker.internal")
"""Names that nobody can have point to somebody else's server."""

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


def allow_hosts(config: Config, names: str | None) -> Config:
    """Add the host names that the server allows (commas between them) to the archive's; None: the server checks none.

    Raises:
        ConfigError: they are no host names.
    """
    if not names:
        return config
    try:
        known = read_hosts([each.strip() for each in names.split(",")]) or ()
    except (TypeError, ValueError):
        raise ConfigError(f"{HOSTS}: expected host names with commas between them, got {names!r}") from None
    return replace(config, allowed_hosts=tuple(dict.fromkeys([*(config.allowed_hosts or ()), *known])))


def check_host(headers: Mapping[str, str], allowed: Sequence[str] | None) -> None:
    """Lets through what names this machine by an address, `localhost`, or one of the names `allowed`.

    To a browser a foreign page and this server are of one origin once the page's own name points here, and the page may read
    every answer. Its requests still carry that name, and never an address.

    Args:
        headers: of the request; one without `host` (gRPC, HTTP/1.0) comes from no browser.
        allowed: names in lower case; `.example.com` stands for all below it, `*` for all; None: nothing is checked.

    Raises:
        RequestError: 403 `HostNotAllowed`.
    """
    given = headers.get("host")
    if allowed is None or given is None:
        return
    name = _read_name(given)
    if _is_address(name) or any(_matches(name, each) for each in (*_ALWAYS, *allowed)):
        return
    message = (
        f"host: expected an address, localhost or a name of allowed_hosts, got {show(given)}; where this server is meant to be "
        "reached by that name, add it to camserve_allowed_hosts in the server's configuration, or to the archive's allowed_hosts"
    )
    raise RequestError(403, "HostNotAllowed", message)


def _read_name(given: str) -> str:
    """Takes the port off, and the dot behind a full name."""
    text = given.strip().lower()
    bracketed = re.fullmatch(r"(\[[^\]]*\])(?::[0-9]*)?", text)
    return bracketed[1] if bracketed else re.sub(r":[0-9]*$", "", text).removesuffix(".")


def _is_address(name: str) -> bool:
    """Browsers take what ends in a number for an IPv4 address, however it is written, and never ask DNS for it."""
    if name.startswith("["):
        try:
            ipaddress.IPv6Address(name[1:-1])
        except ValueError:
            return False
        return True
    return _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


def _matches(name: str, allowed: str) -> bool:
    if allowed.startswith("."):
        return name.endswith(allowed) and len(name) > len(allowed)
    return allowed in ("*", name)
