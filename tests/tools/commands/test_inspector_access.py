"""The inspector page for everybody: screen readers, keyboards, phones, light and dark, and against those who mean harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect
from tests.support.browser import DEMO, NARROW, ROOT, Visit, Visitor, axe, data_file, tab_to
from tests.support.build import encoded, noise
from tests.support.processes.waiting import HANG
from tests.tools.client.test_client import Scripted, scripted  # noqa: F401 a fixture

from camserve.tools.commands import inspector
from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

GROUND = "getComputedStyle(document.body).backgroundColor"
STATES = ("welcome", "explained", "compared", "failed")


def bring_to(tour: Visit, state: str) -> Page:
    """Brings a visit's page into one of the states."""
    if state == "welcome":
        return tour.open()
    page = tour.explain()
    page.locator("summary").click()
    if state == "compared":
        page.get_by_label("Two classes").check(force=True)
        page.get_by_label("Side by side").check(force=True)
        expect(page.locator(".pane")).to_have_count(3)
    if state == "failed":
        tour.expected = "status of 400"
        page.get_by_label("Explain another class").fill("tabi")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
    return page


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(visit: Visitor, state: str) -> None:
    """No violation of WCAG 2.2 AA or of axe-core's best practices, contrast included, wide and narrow, light and dark."""
    page = bring_to(visit(reduced_motion="reduce"), state)
    assert axe(page) == []
    page.get_by_role("button", name="Switch to dark colours").click()
    assert page.evaluate(GROUND) == "rgb(13, 16, 21)"
    assert axe(page) == []


@pytest.mark.parametrize("state", STATES)
def test_nothing_is_wider_than_a_phone(visit: Visitor, state: str) -> None:
    """At 390 pixels the page does not scroll sideways, and every control is inside and large enough for a finger."""
    page = bring_to(visit(viewport=NARROW), state)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    code = """() => [...document.querySelectorAll("button, select, canvas, input:not(.file), .button")]
        .filter(e => e.checkVisibility()).map(e => [e.outerHTML.slice(0, 60), e.getBoundingClientRect()])
        .filter(([, box]) => box.left < 0 || box.right > 390 || box.height < 18).map(([text]) => text)"""
    assert page.evaluate(code) == []


def test_everything_can_be_done_with_the_keyboard(visit: Visitor) -> None:
    """Tab, Enter, Space and arrows lead from the start to a value of another class's heatmap."""
    page = visit().open()
    tab_to(page, "input.file")
    tab_to(page, "#samples li:nth-child(1) button")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    tab_to(page, "input[name=compare]")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".pane")).to_have_count(2)
    tab_to(page, ".pane canvas")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#spoken")).to_have_text(re.compile(r"A \d\.\d\d, B \d\.\d\d"))
    before = page.locator("#readout").inner_text()
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator("#readout")).not_to_have_text(before)
    page.keyboard.press("Escape")
    expect(page.locator("#readout")).to_have_text("Point at the picture to read its heatmap")
    tab_to(page, "#classes li:nth-child(4) button")
    page.keyboard.press("Space")
    expect(page.locator("#classes li:nth-child(4) button")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.activeElement.matches('#classes li:nth-child(4) button')")
    tab_to(page, "#opacity")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#percent")).to_have_text("51 %")


def test_results_are_announced(visit: Visitor) -> None:
    """A screen reader hears the prediction, then where the evidence for another class lies."""
    page = visit().explain()
    status = page.locator("#status[role=status]")
    expect(status).to_have_text(re.compile(r"The model says tiger cat, \d+\.\d %"))
    page.locator("#classes .class", has_text="tabby").click()
    expect(status).to_contain_text("What speaks for tabby lies mostly")


def test_light_and_dark_follow_the_system_and_can_be_switched(visit: Visitor) -> None:
    """The choice is kept for the next visit."""
    page = visit(color_scheme="dark").open()
    assert page.evaluate(GROUND) == "rgb(13, 16, 21)"
    page.get_by_role("button", name="Switch to light colours").click()
    assert page.evaluate(GROUND) == "rgb(244, 245, 247)"
    page.reload()
    assert page.evaluate(GROUND) == "rgb(244, 245, 247)"


def test_the_policy_allows_the_page_itself_and_nothing_else(visit: Visitor, live: Server) -> None:
    """No inline handler, no script of another's, no request elsewhere, no frame around it: the browser refuses."""
    tour = visit()
    tour.expected = "Content Security Policy|violates the following|requires .Trusted"
    page = tour.open()
    assert page.evaluate(
        """async () => { const tries = [];
            const script = document.createElement("script");
            try { script.textContent = "window.ran = 1"; document.body.append(script); } catch { tries.push("script"); }
            try { document.body.innerHTML = "<b onclick=''>"; } catch { tries.push("html"); }
            try { await fetch("http://127.0.0.1:9/"); } catch { tries.push("fetch"); }
            return [window.ran === undefined, tries]; }"""
    ) == [True, ["script", "html", "fetch"]]
    policy = requests.get(f"{live.url}/explanations/{DEMO}", headers={"Accept": "text/html"}, timeout=HANG).headers
    assert "frame-ancestors 'none'" in policy["content-security-policy"]
    assert "unsafe" not in policy["content-security-policy"]


@contextmanager
def proxied(url: str, keys: Path) -> Iterator[str]:
    """The page's address while `scripts/inspector.py` runs."""
    command = [sys.executable, str(ROOT / "scripts" / "inspector.py"), url, "--token-file", str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            told = re.search(r": (http://127\.0\.0\.1:\S+)", program.stdout.readline().replace(url, ""))
            assert told is not None
            yield told[1]
        finally:
            program.terminate()


def test_a_server_that_wants_a_token_is_inspected_through_the_proxy(visit: Visitor, careless: tuple[Server, Path]) -> None:
    """It refuses the page itself; the script adds the token, answers no other site's page, and tells nobody the token."""
    server, keys = careless
    url = f"{server.url}/explanations/hostile"
    assert requests.get(url, headers={"Accept": "text/html"}, timeout=HANG).status_code == 400
    with proxied(url, keys) as address:
        page = visit(address.removesuffix("/explanations/hostile")).explain(data_file(encoded(noise())), "hostile")
        expect(page.locator("#classes .class")).to_have_count(3)
        assert json.loads(keys.read_text())["inference"]["key"] not in page.content()
        _check_strangers(address)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the tool, which is to end before it serves anything, with status 1; what it said."""
    monkeypatch.setattr(inspector.Proxy, "serve_forever", lambda _: pytest.fail("it served the page"))

    def run(*arguments: str) -> str:
        assert inspector.main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return run


def test_where_there_is_no_page_the_tool_ends_at_once(
    careless: tuple[Server, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Without a token, with an old one, for a model that does not exist, or where nothing answers: the reason is told."""
    server, keys = careless
    url = f"{server.url}/explanations/hostile"
    (tmp_path / "old").write_text("old")

    assert "error: the server wants a token (TorchServe's default): give --token-file" in refused(url)
    assert "error: the server refuses the token that was given" in refused(url, "--token-file", str(tmp_path / "old"))
    assert "404 ModelNotFoundException: Model not found: none" in refused(
        f"{server.url}/explanations/none", "--token-file", str(keys)
    )
    assert "does not answer (ConnectionRefusedError); is the server running?" in refused("http://127.0.0.1:1/explanations/m")


def test_an_answer_that_is_no_page_ends_the_tool(scripted: Callable[..., Scripted], refused: Callable[..., str]) -> None:  # noqa: F811
    """Another handler answers a browser with what it answers everybody."""
    server = scripted((200, b"{}"))
    assert 'answers with "", not with a page; its handler is not camserve\'s' in refused(f"{server.url}/explanations/m")
    assert server.asked[0][1]["accept"] == "text/html"


def _check_strangers(page: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for method in ("GET", "POST"):
            answer = requests.request(method, page, headers=headers, data=b"x", timeout=HANG)
            assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden")
    for path in ("/models", "/explanations/other", "/explanations/hostile/../../models"):
        answer = requests.get(page.replace("/explanations/hostile", path), timeout=HANG)
        assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")
