"""Pages of other sites in a real browser: what they may ask of a loopback server, and how one of them is allowed to."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.support.browser import CHROMIUM, QUIET
from tests.support.build import encoded, mar, noise

from camserve.tools.commands.serve import Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]

CONFIG = (Path(__file__).resolve().parents[3] / "config.properties").read_text()
TEXT = base64.b64encode(encoded(noise())).decode()
EVIL = "evil.example"
FETCH = """async ([url, options, fields]) => {
    const picture = new Blob([Uint8Array.from(atob(fields.picture), sign => sign.charCodeAt(0))], {type: "image/png"});
    if (fields.form) { options.body = new FormData(); for (const name of fields.form) options.body.append(name, picture, "a.png"); }
    try {
        const answer = await fetch(url, options);
        return [answer.status, await answer.text(), answer.headers.get("content-type")];
    } catch (error) { return [0, String(error), null]; }
}"""


class Blank(BaseHTTPRequestHandler):
    """Another site: one empty page."""

    def do_GET(self) -> None:
        """Answers with the page."""
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The other site's origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, to which `EVIL` is this machine, as after DNS rebinding."""
    with sync_playwright() as driver:
        flags = [*QUIET.split(), f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Server]:
    """TorchServe with one small model, and the three lines of the operations guide that allow the other site."""
    folder = tmp_path_factory.mktemp("store")
    mar(folder, "tiny")
    lines = [f"cors_allowed_origin={site}", "cors_allowed_methods=GET, POST, OPTIONS"]
    lines.append("cors_allowed_headers=content-type, accept, x-explain-target")
    config = folder / "config.properties"
    config.write_text("\n".join([CONFIG, *lines, ""]))
    with Server(folder, ["tiny"], config=config) as running:
        yield running


def fetch(page: Page, url: str, form: list[str] | None = None, **options: Any) -> list[Any]:
    """What the page's script gets: status, text and type; 0 where the browser refuses."""
    found: list[Any] = page.evaluate(FETCH, [url, {"method": "POST", **options}, {"picture": TEXT, "form": form}])
    return found


JSON: dict[str, Any] = {"body": f'{{"data": "{TEXT}", "target": 1}}', "headers": {"content-type": "application/json"}}


def test_a_name_that_is_made_to_point_here_gets_no_answer(server: Server, browser: Browser) -> None:
    """To the browser page and server are of one origin then. The server's own page works, and is told of two pictures."""
    page = browser.new_page()
    port = server.url.rpartition(":")[2]
    for path in ("explanations/tiny", "predictions/tiny"):
        answer = page.goto(f"http://{EVIL}:{port}/{path}")
        assert answer is not None
        assert (answer.status, "HostNotAllowed" in answer.text()) == (403, True)
        assert fetch(page, f"/{path}", form=["data"])[0] == 403
    for own in (server.url, server.url.replace("127.0.0.1", "localhost")):
        answer = page.goto(f"{own}/explanations/tiny")
        assert answer is not None
        assert answer.status == 200
        assert fetch(page, "/explanations/tiny", form=["data"])[0] == 200
    status, text, _ = fetch(page, "/explanations/tiny", form=["data", "data"])
    assert (status, "the form gives the field 'data' twice" in text) == (400, True)


def test_one_site_can_be_allowed_and_no_other(server: Server, site: str, browser: Browser) -> None:
    """It reads JSON and pictures, with the headers that are allowed; another origin reads nothing."""
    page = browser.new_page()
    page.goto(site)
    url = f"{server.url}/explanations/tiny"
    assert fetch(page, url, **JSON)[::2] == [200, "application/json"]
    assert fetch(page, url, form=["data"])[0] == 200
    picture = fetch(page, url, form=["data"], headers={"accept": "image/png", "x-explain-target": "2"})
    assert picture[::2] == [200, "image/png"]
    assert fetch(page, url, form=["data"], headers={"x-explain-layer": "features"})[0] == 0  # not among those allowed
    page.goto(site.replace("127.0.0.1", "localhost"))
    assert fetch(page, url, **JSON)[0] == 0
    assert fetch(page, url, form=["data"])[0] == 0
