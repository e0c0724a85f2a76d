"""Errors of a server that does not start, or ended."""

from __future__ import annotations

from camserve.tools.console import ToolError


class ServeError(ToolError):
    """A server that cannot start or has ended by itself: the message says why, and what would help."""


class OutageError(ServeError):
    """A model whose workers do not come back, on a server that still serves others: the message says why."""


class Interrupted(Exception):  # noqa: N818
    """The start was called off."""
