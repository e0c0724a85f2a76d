"""The addresses of a server, and the token that each of them wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.auth import AuthBase

from camserve.tools.console import ToolError


@dataclass(frozen=True)
class Endpoints:
    """A server's three addresses, each with its scheme and without a slash at its end."""

    inference: str
    management: str
    metrics: str

    @classmethod
    def of(cls, url: str, management: str | None, metrics: str | None) -> Endpoints:
        """Derives them from the inference address: by TorchServe's habit, management and metrics have the two ports above.

        Raises:
            ToolError: one of them is no URL.
        """
        parts = urlsplit(_complete(url))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        root = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname

        def beside(step: int) -> str:
            return urlunsplit((parts.scheme, f"{root}:{port + step}", "", "", ""))

        return cls(beside(0), _complete(management or beside(1)), _complete(metrics or beside(2)))


def _complete(url: str) -> str:
    """Completes an address with its scheme, and drops a slash at its end."""
    complete = (url if "://" in url else f"http://{url}").rstrip("/")
    if urlsplit(complete).hostname is None:
        raise ToolError(f"expected a server's URL such as http://127.0.0.1:8080, got {url}")
    return complete


class EndpointAuth(AuthBase):
    """Sends each address its own token.

    Args:
        endpoints: the server's addresses.
        tokens: by TorchServe's names, `inference` and `management`; none: nothing is sent.
    """

    def __init__(self, endpoints: Endpoints, tokens: Mapping[str, str]) -> None:
        self._management = f"{endpoints.management}/".lower()
        self._tokens = tokens

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the token to a request."""
        name = "management" if str(request.url).lower().startswith(self._management) else "inference"
        if self._tokens:
            request.headers["Authorization"] = f"Bearer {self._tokens[name]}"
        return request
