"""Refuses requests that name another host: a page of a foreign site whose name was made to point here (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from camserve.core.errors import RequestError
from camserve.core.text import show

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_ALWAYS = ("localhost", ".localhost", "host.docker.internal")
"""Names that nobody can have point to somebody else's server."""


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
