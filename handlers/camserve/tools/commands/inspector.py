"""Serves the inspector page on this machine for a server that wants a token: it adds the token to the page's requests.

A browser cannot send the token when it asks for the page itself. This program asks in its place, and takes requests from
this machine and from its own page only. With --evidence it also shows what was kept of watched predictions, at /evidence.
"""

from __future__ import annotations

import argparse
import re
import webbrowser
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import requests

from camserve.core.errors import MissingPackageError, require
from camserve.core.messages import Reply
from camserve.core.text import show
from camserve.tools.client.client import TokenAuth, read_error
from camserve.tools.client.token import explain_refusal, open_token_file
from camserve.tools.console import ToolError, command_of, fail

if TYPE_CHECKING:
    from camserve.tools.watching.evidence.pages.server import Pages

REQUEST_HEADERS = ("accept", "content-type")
"""Those of the browser's that are passed on; its cookies and the like are none of the server's business."""

RESPONSE_HEADERS = (
    "content-type",
    "content-disposition",
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-opener-policy",
)
"""Those of the server's that are passed on."""

LARGEST = 64 << 20
"""The longest upload that is passed on, in bytes; the server's own limit is lower."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit status: 1 where there is no page to serve."""
    options = parser().parse_args(argv)
    try:
        origins, pages = tuple(map(_read_origin, options.origin)), _open_pages(options) if options.evidence else None
        server = proxy(options.url, open_token_file(options.token_file), options.port, options.timeout)
        server.origins, server.pages = origins, pages
    except (ToolError, MissingPackageError, OSError) as error:
        return fail(error)
    with server:
        try:
            check(server)
        except ToolError as error:
            fail(error)
            if server.pages is None:
                return 1  # else what was kept can be looked at all the same
        print(f"the inspector for {options.url}: {server.page}  (Ctrl-C ends it)", flush=True)
        if server.pages is not None:
            print(f"what was kept in {options.evidence}: {server.origin}/evidence", flush=True)
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
    kept = made.add_argument_group("what was kept of watched predictions")
    kept.add_argument("--evidence", metavar="DIR|URL", help="show it at /evidence, and take marks")
    kept.add_argument(
        *("--archive",), type=Path, action="append", default=[], metavar="FILE",
        help="the archive (.mar) that made the maps, for its reference and its examples",
    )  # fmt: skip
    kept.add_argument("--prometheus", default="", metavar="URL", help="count all watched predictions, as it did, not a sample")
    kept.add_argument(
        *("--origin",), action="append", default=[], metavar="URL",
        help="where users reach this program, where a proxy stands in front: https://evidence.example.com",
    )  # fmt: skip
    kept.add_argument(
        *("--dashboard",), action="append", default=[], metavar="URL",
        help="a Grafana whose panels may show the latest pictures, where it is not on this machine: https://grafana.example.com",
    )  # fmt: skip
    kept.add_argument(
        *("--user-header",), default="", metavar="NAME",
        help="in which that proxy names who asks, for marks: X-Forwarded-User. Whoever reaches this program past it can forge it",
    )  # fmt: skip
    return made


def _open_pages(options: argparse.Namespace) -> Pages:
    """Opens what was kept; raises `ToolError` where it cannot be, `MissingPackageError` where a package lacks."""
    require("looking at evidence", "serve", "cv2", "rich")
    from camserve.tools.watching.evidence.pages.server import Pages  # noqa: PLC0415 the inspector does without OpenCV
    from camserve.tools.watching.evidence.sources import open_evidence  # noqa: PLC0415

    path = urlsplit(options.url).path
    model = path.partition("/explanations/")[2].partition("/")[0]
    evidence = open_evidence(options.evidence, options.archive, options.prometheus)
    return Pages(evidence, model, path, options.user_header.lower(), tuple(map(_read_origin, options.dashboard)))


def _read_origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
        raise ToolError(f"--origin and --dashboard: expected https://HOST or http://HOST:PORT, got {show(text, 200)}")
    return f"{parts.scheme}://{parts.netloc}".lower()


class Proxy(ThreadingHTTPServer):
    """Passes requests for one page on to `target`, adding a token. Listens on loopback only.

    Attributes:
        pages: what was kept of watched predictions; None: it is not shown.
        origins: further ones by which browsers know this program.
    """

    daemon_threads = True

    def __init__(self, target: SplitResult, token: Callable[[], str] | None, port: int, timeout: float) -> None:
        self.target = target
        self.token = token
        self.patience = timeout
        self.pages: Pages | None = None
        self.origins: tuple[str, ...] = ()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def origin(self) -> str:
        """As a browser on this machine names it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def page(self) -> str:
        """The page's URL."""
        return self.origin + self.target.path

    def ask(self, method: str, body: bytes | None, headers: dict[str, str]) -> requests.Response:
        """Asks the server for the page's path, over a connection of its own.

        Raises:
            ToolError: there is no token in the file now.
            requests.RequestException: no answer.
        """
        with requests.Session() as session:
            session.auth = TokenAuth(self.token)
            session.headers.clear()
            url = self.target.geturl()
            return session.request(method, url, data=body, headers=headers, timeout=self.patience, allow_redirects=False)


def proxy(url: str, token: Callable[[], str] | None = None, port: int = 0, timeout: float = 60) -> Proxy:
    """Makes the server, which does not yet serve.

    Raises:
        ToolError: the URL is not that of a model's explanations.
        OSError: the port is taken.
    """
    target = urlsplit(url)
    if target.scheme not in ("http", "https") or not target.hostname or "/explanations/" not in target.path or target.query:
        raise ToolError(f"expected http://HOST:PORT/explanations/MODEL, got {show(url, 200)}")
    return Proxy(target, token, port, timeout)


def check(server: Proxy) -> None:
    """Fetches the page once, as a browser would.

    Raises:
        ToolError: there is none; why, and what would do.
    """
    url = server.target.geturl()
    try:
        response = server.ask("GET", None, {"accept": "text/html"})
    except requests.RequestException as error:
        raise ToolError(f"{url} does not answer ({_cause(error)}); is the server running?") from None
    kind = response.headers.get("content-type", "")
    if response.status_code == 200 and not kind.startswith("text/html"):
        raise ToolError(f"{url} answers with {show(kind)}, not with a page; its handler is not camserve's")
    if response.status_code != 200:
        answer = read_error(response.status_code, response.content)
        raise ToolError(explain_refusal(answer.status, answer.type, server.token is not None) or f"{url} has no page: {answer}")


def _cause(error: BaseException) -> str:
    """Names the exception at the bottom: requests wraps that of urllib3, which wraps the socket's."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return type(error).__name__


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        """Answers with a page, or what it asks for; `/` leads to the inspector."""
        if self.path == "/":
            self._answer(302, b"", {"location": self.server.target.path})
        elif not self._allowed():
            return
        elif self._kept is not None:
            self._give(self._kept.get(self.path))
        else:
            self._pass_on("GET", None)

    def do_POST(self) -> None:
        """Answers the pages' requests."""
        length = self.headers.get("content-length", "")
        if not self._allowed():
            return
        if not length.isdecimal() or int(length) > LARGEST:
            self._refuse(413, "TooLarge", f"expected a content-length of up to {LARGEST} bytes, got {show(length)}")
            return
        body = self.rfile.read(int(length))
        if self._kept is not None:
            self._give(self._kept.post(self.path, body, {name.lower(): value for name, value in self.headers.items()}))
        else:
            self._pass_on("POST", body)

    @property
    def _kept(self) -> Pages | None:
        """The pages that this request is for; None: it is for the inspector's."""
        return self.server.pages if re.match(r"/evidence(?:[/?]|$)", self.path) else None

    def _embeds(self) -> bool:
        return self._kept is not None and self._kept.embeds(self.path, self.headers.get("referer", ""))

    def _allowed(self) -> bool:
        """Lets through only these pages' paths, asked for by this machine's name and not from another site's page.

        A foreign page could otherwise use the token: by a form (its `Origin` tells), or after making its own host name
        point to this machine (the `Host` tells). It may link here, and a dashboard may show the latest pictures: it cannot read
        what is opened so.
        """
        port = self.server.server_address[1]
        origins = (f"http://127.0.0.1:{port}", f"http://localhost:{port}", *self.server.origins)
        origin, site = self.headers.get("origin"), self.headers.get("sec-fetch-site")
        mode, goal = self.headers.get("sec-fetch-mode"), self.headers.get("sec-fetch-dest")
        opened = (mode, goal) == ("navigate", "document") or (goal == "image" and self._embeds())
        if (
            self.headers.get("host", "").lower() not in [each.partition("://")[2] for each in origins]
            or origin not in (None, *origins)
            or (site not in (None, "same-origin", "none") and not (self.command == "GET" and opened))
        ):
            self._refuse(403, "Forbidden", "only this page's own requests are passed on")
            return False
        if self.path != self.server.target.path and self._kept is None:
            self._refuse(404, "NotFound", f"only {self.server.target.path} is here")
            return False
        return True

    def _give(self, reply: Reply) -> None:
        self._answer(reply.status, reply.body, {"content-type": reply.content_type, **reply.headers})

    def _pass_on(self, method: str, body: bytes | None) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() in REQUEST_HEADERS}
        try:
            response = self.server.ask(method, body, headers)
        except ToolError as error:
            self._refuse(502, "NoToken", str(error))
            return
        except requests.RequestException as error:
            self._refuse(502, "Unreachable", f"the server does not answer ({_cause(error)})")
            return
        kept = {name: response.headers[name] for name in RESPONSE_HEADERS if name in response.headers}
        self._answer(response.status_code, response.content, kept)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self.close_connection = True  # what the client still sends is not read
        text = f'{{"code":{status},"type":"{kind}","message":{show(message, 1000)}}}'
        self._answer(status, text.encode(), {"content-type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body)), "cache-control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 the base class's name
        """Logs nothing: requests are the user's own."""
