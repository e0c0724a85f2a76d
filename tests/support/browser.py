"""A real browser visits the pages: what it is given, what it asks for, and what goes wrong in it."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Error, Locator, Page, expect, sync_playwright

from camserve.tools.commands.serve import Server

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "examples" / "cat.jpg"
DEMO = "efficientnet_lite0"
AXE = ROOT / "tests" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
OFF = (
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup,AimEnabled,AvoidCorsURLLoaderRestartOnRedirect,AvoidUnnecessaryBeforeUnloadCheckSync,"
    "DestroyProfileOnBrowserClose,HttpsFirstBalancedModeAutoEnable,HttpsUpgrades,LensOverlay,MediaRouter,"
    "NetworkTimeServiceQuerying,OptimizationHints,PaintHolding,PreconnectToSearch,ThirdPartyStoragePartitioning"
)
"""Features of Chromium. The first two are lists of the address bar: pages in a process of their own, for which each window takes half
a second of processor time. The others are off in Playwright, whose list Chromium passes over where it is given another."""
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PATIENCE = 180_000
"""Milliseconds to wait for anything at all: a machine may be busy, and what does come ends the wait."""

expect.set_options(timeout=PATIENCE)


class Running(ExitStack):
    """Debian's Chromium while it runs, with a profile of its own that is gone afterwards, and a page that visits share: a new one is
    a new process, and half a second of processor time."""

    def __init__(self) -> None:
        super().__init__()
        driver = self.enter_context(sync_playwright())
        arguments = [*QUIET.split(), f"--disable-features={OFF}"]
        self.browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        self.callback(self.browser.close)
        self.page: Page | None = None

    def make_context(self, **options: Any) -> BrowserContext:
        """A profile of its own."""
        context = self.browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        context.set_default_timeout(PATIENCE)
        return context

    def take_page(self, viewport: Any = WIDE, color_scheme: Any = "light", reduced_motion: Any = "no-preference") -> Page:
        """The shared page, as new, with these options of a profile."""
        if self.page is None or self.page.is_closed():
            self.page = self.make_context().new_page()
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=color_scheme, reduced_motion=reduced_motion)
        return self.page

    def put_back(self, page: Page) -> None:
        """Has the shared page forget all that a visit did with it."""
        page.unroute_all(behavior="ignoreErrors")
        if page.url != "about:blank":
            page.evaluate("localStorage.clear()")
        page.goto("about:blank")
        page.mouse.move(0, 0)


RUNNING: list[Running] = []
"""The one that runs, or none."""


@pytest.fixture(scope="module")
def chromium() -> Browser:
    """A browser that tests in one go share, those of other files too."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    if not RUNNING:
        RUNNING.append(Running())
    return RUNNING[0].browser


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the browser before tests of another group: its driver's event loop would be in the way of theirs."""
    from tests.support.processes.parallel import group_of

    if nextitem is None or group_of(item.nodeid) != group_of(nextitem.nodeid):
        pytest_sessionfinish()


def pytest_sessionfinish() -> None:
    """Ends the browser."""
    while RUNNING:
        RUNNING.pop().close()


@dataclass
class Visit:
    """A browser's page, what it asked for, and what went wrong in it."""

    page: Page
    home: str
    posts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    expected: str = "nothing"

    def watch(self) -> None:
        """Records requests to other origins, errors, dialogs and messages of the console."""
        for event, listener in self._listeners():
            self.page.on(event, listener)  # type: ignore[call-overload]

    def leave(self) -> None:
        """Records no more."""
        for event, listener in self._listeners():
            self.page.remove_listener(event, listener)

    def _listeners(self) -> list[tuple[str, Callable[[Any], None]]]:
        return [
            ("request", self._on_request),
            ("pageerror", self._on_error),
            ("dialog", self._on_dialog),
            ("console", self._on_console),
        ]

    def _on_error(self, error: Error) -> None:
        self.faults.append(f"error: {error}")

    def _on_console(self, message: ConsoleMessage) -> None:
        self.faults.append(f"console: {message.text}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.home, "data:", "blob:")):
            self.faults.append(f"request: {request.url}")
        if request.method == "POST":
            self.posts.append(request.url)

    def open(self, model: str = DEMO) -> Page:
        """Goes to a model's page."""
        response = self.page.goto(f"{self.home}/explanations/{model}")
        assert response is not None
        assert response.status == 200
        return self.page

    def explain(self, picture: Any = CAT, model: str = DEMO) -> Page:
        """Goes to a model's page and gives it a picture: a path, or a name, type and bytes."""
        page = self.open(model)
        self.give(picture)
        expect(page.locator("#work")).to_be_visible()
        return page

    def give(self, picture: Any) -> None:
        """Chooses a file."""
        self.page.locator("input.file >> visible=true").or_(self.page.locator("input.file")).first.set_input_files(picture)


Visitor = Callable[..., Visit]


@contextmanager
def visiting(usual: str, **defaults: Any) -> Iterator[Visitor]:
    """Opens visits, to `usual` by default; in the end none has seen an error, a dialog, or a request to another origin. The first has
    the shared page, unless it has options that only a profile of its own can have."""
    visits: list[Visit] = []
    (running,) = RUNNING

    def make(home: str = usual, **options: Any) -> Visit:
        options = {**defaults, **options}
        alone = visits or options.keys() - {"viewport", "color_scheme", "reduced_motion"}
        page = running.make_context(**options).new_page() if alone else running.take_page(**options)
        visits.append(Visit(page, home))
        visits[-1].watch()
        return visits[-1]

    yield make
    for each in visits:
        if each.page == running.page:
            running.put_back(each.page)
            each.leave()
        else:
            each.page.context.close()
    for each in visits:
        assert [fault for fault in each.faults if not re.search(each.expected, fault)] == []


@pytest.fixture
def visit(chromium: Browser, live: Server) -> Iterator[Visitor]:  # of the browser that runs
    """Opens visits to the live server."""
    with visiting(live.url) as make:
        yield make


def data_file(content: bytes | bytearray, name: str = "picture.png") -> dict[str, Any]:
    """A file to choose."""
    return {"name": name, "mimeType": "image/png", "buffer": bytes(content)}


def shown(page: Page, pane: int = 0) -> Locator:
    """A pane; the bare picture, where it is shown, is none."""
    return page.locator(".pane:has(.how:not([hidden]))").nth(pane)


def pixels(page: Page) -> list[int]:
    """The first pane's pixels, on a coarse grid."""
    code = """canvas => { const s = document.createElement("canvas"); s.width = s.height = 16;
        const c = s.getContext("2d"); c.drawImage(canvas, 0, 0, 16, 16); return [...c.getImageData(0, 0, 16, 16).data]; }"""
    found: list[int] = shown(page).locator("canvas").evaluate(code)
    return found


def downloaded(page: Page, button: str) -> bytes:
    """What a button saves."""
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()


def decoded(picture: bytes) -> NDArray[np.int16]:
    """A picture's RGB pixels."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.int16)


def set_range(page: Page, selector: str, value: int) -> None:
    """Moves a slider as a hand does."""
    page.locator(selector).evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


def tab_to(page: Page, selector: str, most: int = 60) -> None:
    """Presses Tab until an element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def axe(page: Page) -> list[Any]:
    """What axe-core finds wrong with the page as it stands, wide and narrow."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: scripts/test.sh installs it")
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(AXE.read_text("utf-8"))
    found: list[Any] = []
    for viewport in (WIDE, NARROW):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        violations = page.evaluate("axe.run()")["violations"]
        found += [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations]
    return found
