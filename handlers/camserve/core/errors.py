"""What can be wrong with a request, and what can be wrong with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

KINDS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        400: (
            *("InvalidImage", "UnsupportedFormat", "InvalidJSON", "InvalidBase64", "InvalidTensor"),
            *("NoImage", "NoPicture", "UnknownOption", "InvalidOption", "UnknownLabel"),
        ),
        406: ("NotAcceptable",),
        413: ("ImageTooLarge", "ResponseTooLarge", "TooManyInstances"),
        500: ("InternalError",),
        507: ("OutOfMemory",),
    }
)
"""The types of errors that each status can have."""


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
