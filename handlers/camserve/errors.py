"""What can be wrong with a request, and what can be wrong with a configuration."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable


class RequestError(Exception):
    """A request that cannot be answered: becomes `{"code": status, "type": kind, "message": message}`.

    `message` says what is wrong, what came and what would be accepted. It never holds a path or a stack trace.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message

    def inside(self, place: str) -> RequestError:
        """The same error, its message starting with `place` (`instance 1`)."""
        return RequestError(self.status, self.kind, f"{place}: {self.message}")


class ConfigError(ValueError):
    """A configuration that stops the load: one line that names the key, the value and what is accepted."""


def shown(value: object, limit: int = 60) -> str:
    """`value` as an error message may repeat it: JSON for a scalar, in ASCII, on one line, at most `limit` characters."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: limit + 1]).decode("utf-8", "replace")
    if isinstance(value, str):
        value = value[: limit + 1]
    text = json.dumps(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(names: Iterable[object], limit: int = 12) -> str:
    """`a, b or c`; the rest is counted beyond `limit` names."""
    words = [str(name) for name in names]
    if len(words) > limit:
        return ", ".join(words[:limit]) + f" or {len(words) - limit} more"
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names most like `name`, best first, whatever their case; for long lists of long names this stays quick."""
    by_folded: dict[str, str] = {}
    for candidate in names:
        by_folded.setdefault(candidate.casefold()[:80], candidate)
    return [by_folded[key] for key in difflib.get_close_matches(name.casefold()[:80], by_folded, n=count, cutoff=0.5)]
