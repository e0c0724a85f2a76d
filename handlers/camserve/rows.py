"""What TorchServe hands a worker for each request, a row and its headers, as a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camserve.messages import Call


def call_of(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Call:
    """A row and its headers as a call; TorchServe keeps each parameter's content type among the headers, as a dict.

    Its own header is `explain`, in this case exactly: a client's `Explain` stands beside it.
    """
    plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    return Call(explain=headers.get("explain") == "True", headers=plain, fields=row)


def from_management(headers: Mapping[str, Any]) -> bool:
    """Whether a request without a body came to the management address.

    Most inference routes say `explain` of each request; `/invocations` and its like do not, and have no body where a form is
    empty.
    """
    form = any(name.lower() == "content-type" and "form" in str(value).lower() for name, value in headers.items())
    return "explain" not in headers and not form
