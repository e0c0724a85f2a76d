"""Serves the inspector page on this machine for a server that wants a token: it adds the token to the page's requests.

A browser cannot send the token when it asks for the page itself. This program asks in its place, and takes requests from
this machine and from its own page only.
"""

from __future__ import annotations

import argparse
import http.client
import ssl
import webbrowser
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from camserve.core.text import shown
from camserve.tools.client.client import error_of
from camserve.tools.client.token import refusal, token_from
from camserve.tools.console import Progress, ToolError, command_of, fail

PASSED_ON = ("accept", "content-type")
"""Of the browser's headers; its cookies and the like are none of the server's business."""

KEPT = ("content-type", "content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-opener-policy")
"""Of the server's headers."""

MOST = 64 << 20
"""The longest upload that is passed on, in bytes; the server's own limit is lower."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; the exit status: 1 where there is no page to serve."""
    options = parser().parse_args(argv)
    try:
        server = proxy(options.url, token_from(options.token_file), options.port, options.timeout)
    except (ToolError, OSError) as error:
        return fail(error)
    with server:
        try:
            check(server)
        except ToolError as error:
            return fail(error)
        Progress().note(f"the inspector for {options.url}: {server.page}  (Ctrl-C ends it)")
        if options.open:
            webbrowser.open(server.page)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog=command_of("inspector"), description=__doc__, allow_abbrev=False)
    made.add_argument("url", metavar="URL", help="http://HOST:PORT/explanations/MODEL")
    made.add_argument("--token-file", type=Path, metavar="FILE", help="holds the server's token, or is its key_file.json")
    made.add_argument("--port", type=int, default=0, help="port on this machine (a free one)")
    made.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="longest wait for an answer (%(default)g)")
    made.add_argument("--open", action="store_true", help="open the page in a browser")
    return made


class Proxy(ThreadingHTTPServer):
    """Passes requests for one page on to `target`, adding a token. Listens on loopback only."""

    daemon_threads = True

    def __init__(self, target: SplitResult, token: Callable[[], str] | None, port: int, timeout: float) -> None:
        self.target = target
        self.token = token
        self.patience = timeout
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def origin(self) -> str:
        """As a browser on this machine names it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def page(self) -> str:
        """The page's URL."""
        return self.origin + self.target.path

    def connect(self) -> http.client.HTTPConnection:
        """A new connection to the server."""
        host, port = str(self.target.hostname), self.target.port
        if self.target.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self.patience, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self.patience)

    def ask(self, method: str, body: bytes | None, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        """The server's answer for the page's path, and its content.

        Raises:
            ToolError: there is no token in the file now.
            OSError, HTTPException: no answer.
        """
        authorised = {**headers, "authorization": f"Bearer {self.token()}"} if self.token else headers
        connection = self.connect()
        try:
            connection.request(method, self.target.path, body, authorised)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


def proxy(url: str, token: Callable[[], str] | None = None, port: int = 0, timeout: float = 60) -> Proxy:
    """The server, not yet serving.

    Raises:
        ToolError: the URL is not that of a model's explanations.
        OSError: the port is taken.
    """
    target = urlsplit(url)
    if target.scheme not in ("http", "https") or not target.hostname or "/explanations/" not in target.path or target.query:
        raise ToolError(f"expected http://HOST:PORT/explanations/MODEL, got {shown(url, 200)}")
    return Proxy(target, token, port, timeout)


def check(server: Proxy) -> None:
    """Fetches the page once, as a browser would.

    Raises:
        ToolError: there is none; why, and what would do.
    """
    url = server.target.geturl()
    try:
        response, content = server.ask("GET", None, {"accept": "text/html"})
    except (OSError, http.client.HTTPException) as error:
        raise ToolError(f"{url} does not answer ({type(error).__name__}); is the server running?") from None
    kind = response.getheader("content-type", "")
    if response.status == 200 and not kind.startswith("text/html"):
        raise ToolError(f"{url} answers with {shown(kind)}, not with a page; its handler is not camserve's")
    if response.status != 200:
        told = error_of(response.status, content)
        raise ToolError(refusal(told.status, told.type, server.token is not None) or f"{url} has no page: {told}")


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        """The page; `/` leads there."""
        if self.path == "/":
            self._answer(302, b"", {"location": self.server.target.path})
        elif self._allowed():
            self._pass_on("GET", None)

    def do_POST(self) -> None:
        """The page's requests."""
        length = self.headers.get("content-length", "")
        if not self._allowed():
            return
        if not length.isdecimal() or int(length) > MOST:
            self._refuse(413, "TooLarge", f"expected a content-length of up to {MOST} bytes, got {shown(length)}")
            return
        self._pass_on("POST", self.rfile.read(int(length)))

    def _allowed(self) -> bool:
        """Only this page's path, by this machine's name, and not from another site's page.

        A foreign page could otherwise use the token: by a form (its `Origin` tells), or after making its own host name
        point to this machine (the `Host` tells).
        """
        port = self.server.server_address[1]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        origin = self.headers.get("origin")
        if self.headers.get("host") not in hosts or origin not in (None, *(f"http://{host}" for host in hosts)):
            self._refuse(403, "Forbidden", "only this page's own requests are passed on")
            return False
        if self.headers.get("sec-fetch-site") not in (None, "same-origin", "none"):
            self._refuse(403, "Forbidden", "only this page's own requests are passed on")
            return False
        if self.path != self.server.target.path:
            self._refuse(404, "NotFound", f"only {self.server.target.path} is here")
            return False
        return True

    def _pass_on(self, method: str, body: bytes | None) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() in PASSED_ON}
        try:
            response, content = self.server.ask(method, body, headers)
        except ToolError as error:
            self._refuse(502, "NoToken", str(error))
            return
        except (OSError, http.client.HTTPException) as error:
            self._refuse(502, "Unreachable", f"the server does not answer ({type(error).__name__})")
            return
        kept = {name.lower(): value for name, value in response.getheaders() if name.lower() in KEPT}
        self._answer(response.status, content, kept)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self.close_connection = True  # what the client still sends is not read
        text = f'{{"code":{status},"type":"{kind}","message":{shown(message, 1000)}}}'
        self._answer(status, text.encode(), {"content-type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body)), "cache-control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 the base class's name
        """Nothing is logged: requests are the user's own."""
