"""The inspector page and the gallery in a real browser, against a live server."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from tests.build import HOSTILE, encoded, mar, noise

from camserve.tools import explain
from camserve.tools.inspector import proxy
from camserve.tools.serve import Server
from camserve.tools.token import token_from

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parent.parent
CAT = ROOT / "examples" / "cat.jpg"
DEMO = "efficientnet_lite0"
AXE = ROOT / "tests" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PATIENCE = 60_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, with a profile of its own that is gone afterwards."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET.split(), "--disable-sync"])
        yield browser
        browser.close()


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
        page = self.page
        page.on("request", self._on_request)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self.faults.append(f"console: {message.text}"))

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
        expect(page.locator("#work")).to_be_visible(timeout=PATIENCE)
        return page

    def give(self, picture: Any) -> None:
        """Chooses a file."""
        self.page.locator("input.file >> visible=true").or_(self.page.locator("input.file")).first.set_input_files(picture)


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Browser, live: Server) -> Iterator[Visitor]:
    """Opens visits; in the end none has seen an error, a dialog, or a request to another origin."""
    visits: list[Visit] = []

    def make(home: str = live.url, **options: Any) -> Visit:
        context = chromium.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        context.set_default_timeout(PATIENCE)
        visits.append(Visit(context.new_page(), home))
        visits[-1].watch()
        return visits[-1]

    yield make
    for each in visits:
        each.page.context.close()
        assert [fault for fault in each.faults if not re.search(each.expected, fault)] == []


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


# ------------------------------------------------------------------ a picture and its heatmap


def test_a_picture_gets_predictions_and_a_heatmap(visit: Visitor, live: Server) -> None:
    """The classes, their probabilities and the sentence are those of the server's answer."""
    page = visit().explain()
    answer = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), timeout=60).json()

    rows = page.locator("#classes .class")
    assert rows.locator(".label").all_inner_texts() == [row["label"] for row in answer["classes"]]
    assert rows.locator(".share").all_inner_texts() == [f"{100 * row['probability']:.1f} %" for row in answer["classes"]]
    first = answer["classes"][0]["label"]
    expect(shown(page).locator(".name .label")).to_have_text(first)
    expect(shown(page).locator(".says")).to_contain_text(f"The evidence for {first} lies mostly in the middle")
    expect(page.locator("#took")).to_contain_text("s")
    assert page.title() == f"{DEMO}: camserve inspector"


@pytest.mark.parametrize("way", ["drop", "paste", "sample"])
def test_a_picture_can_be_dropped_pasted_or_taken_from_the_samples(visit: Visitor, way: str) -> None:
    """Each ends in the same view as choosing a file."""
    page = visit().open()
    if way == "sample":
        page.locator("#samples button", has=page.get_by_alt_text("rocket")).click()
    else:
        code = """([bytes, way]) => { const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            const event = way === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true }); document.body.dispatchEvent(event); }"""
        page.evaluate(code, [list(CAT.read_bytes()), way])

    wanted = "missile" if way == "sample" else "tiger cat"
    expect(shown(page).locator(".name .label")).to_have_text(wanted, timeout=PATIENCE)


def test_text_that_is_dropped_is_refused_in_words(visit: Visitor) -> None:
    """A link dragged from another page is no file."""
    page = visit().open()
    page.evaluate("document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true}))")

    expect(page.get_by_role("alert")).to_contain_text("Only picture files can be dropped")


def test_a_click_on_a_class_shows_its_heatmap_without_a_request(visit: Visitor) -> None:
    """The first answer holds the heatmaps of all classes that are listed."""
    tour = visit()
    page = tour.explain()
    before, posts = pixels(page), len(tour.posts)
    row = page.locator("#classes .class").nth(2)
    row.click()

    expect(row).to_have_attribute("aria-pressed", "true")
    expect(shown(page).locator(".name .label")).to_have_text(row.locator(".label").inner_text())
    assert pixels(page) != before
    assert len(tour.posts) == posts


def test_sliders_colours_and_boxes_answer_without_a_request(visit: Visitor) -> None:
    """Each changes what is drawn, in the page alone."""
    tour = visit()
    page = tour.explain()
    posts, seen = len(tour.posts), [pixels(page)]
    set_range(page, "#opacity", 90)
    seen.append(pixels(page))
    for name in ("inferno", "turbo", "jet", "gray"):
        page.locator("#colormap").select_option(name)
        seen.append(pixels(page))
    assert len({str(each) for each in seen}) == len(seen)

    boxes = shown(page).locator(".boxes rect:not(.halo)")
    expect(boxes).to_have_count(2)
    page.get_by_label("What the model saw").uncheck()
    expect(boxes).to_have_class(["region"])
    page.get_by_label("Brightest region").uncheck()
    expect(boxes).to_have_count(0)
    expect(page.locator("#percent")).to_have_text("90 %")
    assert len(tour.posts) == posts


def test_what_the_page_draws_is_what_the_server_draws(visit: Visitor, live: Server) -> None:
    """The picture that is saved differs from the server's overlay by a few levels at most (the browser blends in integers)."""
    page = visit().explain()
    headers = {"Accept": "image/png", "X-Explain-Target": "285", "X-Explain-Opacity": "0.6", "X-Explain-Colormap": "turbo"}
    wanted = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), headers=headers, timeout=60).content
    page.locator("#classes .class", has_text="Egyptian cat").click()
    page.locator("#colormap").select_option("turbo")
    set_range(page, "#opacity", 60)

    difference = np.abs(decoded(downloaded(page, "#png")) - decoded(wanted))
    assert difference.max() <= 4
    assert difference.mean() < 0.6


def _rotated() -> bytes:
    """A JPEG with a red left half that says it is to be turned by 90 degrees."""
    picture = Image.new("RGB", (96, 64), "blue")
    picture.paste("red", (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes(encoded(picture, "JPEG", quality=95, exif=exif))


def _transparent() -> bytes:
    pixels = np.dstack([noise(72, 64), np.tile(np.linspace(0, 255, 72, dtype=np.uint8), (64, 1))])
    return bytes(encoded(Image.fromarray(pixels, "RGBA")))


FORMS = {
    "jpeg that says it is turned": _rotated,
    "png with transparency": _transparent,
    "png of 16-bit grey": lambda: bytes(
        encoded(Image.fromarray(np.linspace(0, 65535, 64 * 72).reshape(64, 72).astype(np.uint16)))
    ),
    "tiff": lambda: bytes(encoded(noise(72, 64), "TIFF")),
    "gif": lambda: bytes(encoded(Image.fromarray(noise(72, 64)).quantize(16), "GIF")),
    "webp": lambda: bytes(encoded(noise(72, 64), "WEBP", lossless=True)),
    "bmp": lambda: bytes(encoded(noise(72, 64), "BMP")),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_page_shows_the_picture_that_the_model_got(visit: Visitor, live: Server, form: str) -> None:
    """At opacity 0 the page draws the picture as the server does: unturned, without transparency, whatever the format."""
    content = FORMS[form]()
    page = visit().explain(data_file(content, "picture"), "hostile")
    headers = {"Accept": "image/png", "X-Explain-Opacity": "0"}
    wanted = requests.post(f"{live.url}/explanations/hostile", data=content, headers=headers, timeout=60).content
    set_range(page, "#opacity", 0)

    assert np.abs(decoded(downloaded(page, "#png")) - decoded(wanted)).max() <= 4


# ------------------------------------------------------------------ other classes, methods and layers


def test_a_typed_label_is_explained_and_a_near_miss_is_helped(visit: Visitor) -> None:
    """The server's own suggestions become buttons; a class that was asked for joins the list."""
    tour = visit()
    tour.expected = "status of 400"
    page = tour.explain()
    page.get_by_label("Explain another class").fill("golden retreiver")
    page.get_by_role("button", name="Explain", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text('no class has the label "golden retreiver"')
    alert.get_by_role("button", name="golden retriever").click()

    expect(shown(page).locator(".name .label")).to_have_text("golden retriever")
    expect(alert).to_be_hidden()
    row = page.locator("#classes .class", has_text="golden retriever")
    expect(row).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Explain another class").fill("281")
    page.keyboard.press("Enter")
    expect(shown(page).locator(".name .label")).to_have_text("tabby")


def test_method_and_layer_can_be_changed(visit: Visitor) -> None:
    """The layers are those that the archive allows, and the map is that layer's."""
    page = visit().explain(model="resnet50")
    pane = shown(page)
    assert pane.locator("select.layer").locator("option").all_inner_texts() == ["layer4", "layer3"]
    expect(pane.locator(".fine")).to_contain_text("7 × 7 cells at layer4")
    pane.locator("select.layer").select_option("layer3")
    expect(pane.locator(".fine")).to_contain_text("14 × 14 cells at layer3")
    before = pixels(page)
    pane.locator("select.method").select_option("layercam")
    expect(pane.locator("canvas")).to_have_attribute("aria-label", re.compile("layercam"))
    assert pixels(page) != before


def test_two_classes_or_two_methods_stand_side_by_side(visit: Visitor) -> None:
    """A and B are chosen apart, the original joins them where asked, and one pane is left in the end."""
    page = visit().explain()
    page.get_by_label("Two classes").check(force=True)
    names = [shown(page, index).locator(".name .label") for index in (0, 1)]
    expect(names[0]).to_have_text("tiger cat")
    expect(names[1]).to_have_text("Egyptian cat")
    expect(page.locator("#agreement")).to_contain_text(re.compile(r"share \d+ % of their brightest cells"))
    page.locator("#classes .class", has_text="tabby").click()
    expect(names[0]).to_have_text("tiger cat")
    expect(names[1]).to_have_text("tabby")
    page.locator("#chosen").get_by_label("A").check(force=True)
    page.locator("#classes .class", has_text="lynx").click()
    expect(names[0]).to_have_text("lynx")

    page.get_by_label("Two methods").check(force=True)
    expect(shown(page, 1).locator("select.method")).to_have_value("gradcam")
    expect(names[1]).to_have_text("lynx")
    page.get_by_label("Side by side").check(force=True)
    assert page.locator(".pane .name .label").all_inner_texts() == ["Original", "lynx", "lynx"]
    assert decoded(downloaded(page, "#png")).shape[1] == 3 * 451
    page.locator("#compare").get_by_label("Off").check(force=True)
    page.get_by_label("Overlay").check(force=True)
    expect(page.locator(".pane")).to_have_count(1)


def test_the_value_under_the_pointer_is_the_heatmaps(visit: Visitor, live: Server) -> None:
    """In the middle of a cell it is the cell's value; what the model did not see has none."""
    page = visit().explain()
    answer = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), timeout=60).json()
    left, top, right, bottom = answer["image"]["view"]
    box = shown(page).locator("canvas").bounding_box()
    assert box is not None
    scale = box["width"] / 451
    row, column = 3, 1
    x, y = left + (column + 0.5) * (right - left) / 7, top + (row + 0.5) * (bottom - top) / 7
    page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
    expect(page.locator("#readout")).to_contain_text(f": {answer['explanations'][0]['heatmap'][row][column]:.2f}")
    page.mouse.move(box["x"] + 20 * scale, box["y"] + 100 * scale)
    expect(page.locator("#readout")).to_have_text("x 20, y 100: not seen")
    page.mouse.move(0, 0)
    expect(page.locator("#readout")).to_have_text("Point at the picture to read its heatmap")


# ------------------------------------------------------------------ what can be taken away


NAMES = ["cat.jpg", 'it\'s a "cat"; $(touch x) `id`,\\.jpg']


@pytest.mark.parametrize("name", NAMES)
def test_the_curl_command_gives_the_json_that_the_page_saves(visit: Visitor, tmp_path: Path, name: str) -> None:
    """Both are the answer for what is shown, whatever the file is called; nothing in its name is run."""
    (tmp_path / name).write_bytes(CAT.read_bytes())
    page = visit().explain(str(tmp_path / name))
    page.get_by_label("Two classes").check(force=True)
    expect(shown(page, 1)).to_be_visible()
    shown(page, 0).locator("select.method").select_option("gradcam")
    shown(page, 1).locator("select.method").select_option("gradcam")
    expect(page.locator("#curl")).to_contain_text("method=gradcam'")
    expect(page.locator("#curl")).to_contain_text("target=[282,285]")
    page.locator("summary").click()
    command = page.locator("#curl").inner_text()

    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=tmp_path, timeout=60)
    assert json.loads(done.stdout) == json.loads(downloaded(page, "#json"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_curl_command_can_be_copied(visit: Visitor) -> None:
    """The clipboard then holds it."""
    page = visit(permissions=["clipboard-read", "clipboard-write"]).explain()
    page.locator("summary").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curl").inner_text()


# ------------------------------------------------------------------ what goes wrong


def test_a_file_that_is_no_picture_is_refused_in_the_servers_words(visit: Visitor) -> None:
    """The message says what would be accepted; the picture from before stays."""
    tour = visit()
    tour.expected = "status of 400"
    page = tour.explain()
    tour.give(data_file(b"\x00\x01 no picture \xff", "evil.png"))

    expect(page.get_by_role("alert")).to_contain_text("JPEG, PNG, WebP, GIF, TIFF or BMP")
    expect(shown(page).locator(".name .label")).to_have_text("tiger cat")
    page.get_by_role("button", name="Close this message").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_is_gone_can_be_tried_again(visit: Visitor) -> None:
    """The picture need not be chosen again."""
    tour = visit()
    tour.expected = "ERR_CONNECTION_REFUSED"
    page = tour.open()
    page.route("**/explanations/*", lambda route: route.abort("connectionrefused"))
    tour.give(CAT)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No answer from the server")
    page.unroute("**/explanations/*")
    alert.get_by_role("button", name="Try again").click()

    expect(shown(page).locator(".name .label")).to_have_text("tiger cat", timeout=PATIENCE)
    expect(alert).to_be_hidden()


def test_a_full_server_is_asked_again_by_itself(visit: Visitor) -> None:
    """One 503 is not shown to anybody."""
    tour = visit()
    tour.expected = "status of 503"
    page = tour.open()
    turned_away: list[str] = []

    def once(route: Route) -> None:
        if turned_away:
            route.continue_()
            return
        turned_away.append(route.request.url)
        route.fulfill(status=503, json={"code": 503, "type": "ServiceUnavailableException", "message": "full"})

    page.route("**/explanations/*", once)
    tour.give(CAT)
    expect(shown(page).locator(".name .label")).to_have_text("tiger cat", timeout=PATIENCE)
    assert len(turned_away) == 1


def test_an_upload_that_is_too_large_is_told_so(visit: Visitor) -> None:
    """TorchServe's own 413 has no body."""
    tour = visit()
    tour.expected = "status of 413"
    page = tour.open()
    page.route("**/explanations/*", lambda route: route.fulfill(status=413, body=""))
    tour.give(CAT)
    expect(page.get_by_role("alert")).to_contain_text("This file is too large")


def test_hostile_labels_and_file_names_are_only_text(visit: Visitor) -> None:
    """They appear as they are written; nothing of them runs, in the list, the picture's text, the boxes or the errors."""
    tour = visit()
    tour.expected = "status of 400"
    name = "<img src=x onerror=alert(3)>.png"
    page = tour.explain(data_file(encoded(noise()), name), "hostile")
    labels = page.locator("#classes .class .label").evaluate_all("all => all.map(each => each.textContent)")
    assert sorted(labels) == sorted(HOSTILE.values())
    for index in range(3):
        page.locator("#classes .class").nth(index).click()
        expect(shown(page).locator(".name .label")).to_have_text(labels[index])
    page.get_by_label("Explain another class").fill("<img src=x onerror=alert(4)>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("<img src=x onerror=alert(4)>")
    expect(page.locator("#curl")).to_contain_text(name)
    assert page.locator("img[src=x], main script").count() == 0


# ------------------------------------------------------------------ everybody


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(visit: Visitor, scheme: str, state: str) -> None:
    """No violation of WCAG 2.2 AA or of axe-core's best practices, contrast included, wide and narrow."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: scripts/test.sh installs it")
    page = bring_to(visit(color_scheme=scheme, reduced_motion="reduce"), state)
    page.evaluate(AXE.read_text("utf-8"))
    for viewport in (WIDE, NARROW):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        found = page.evaluate("axe.run()")
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]] == []


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
    expect(page.locator("#work")).to_be_visible(timeout=PATIENCE)
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
    expect(status).to_contain_text("The evidence for tabby lies mostly")


def test_light_and_dark_follow_the_system_and_can_be_switched(visit: Visitor) -> None:
    """The choice is kept for the next visit."""
    page = visit(color_scheme="dark").open()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(13, 16, 21)"
    page.get_by_role("button", name="Switch to light colours").click()
    assert page.evaluate(ground) == "rgb(244, 245, 247)"
    page.reload()
    assert page.evaluate(ground) == "rgb(244, 245, 247)"


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
    policy = requests.get(f"{live.url}/explanations/{DEMO}", headers={"Accept": "text/html"}, timeout=60).headers
    assert "frame-ancestors 'none'" in policy["content-security-policy"]
    assert "unsafe" not in policy["content-security-policy"]


# ------------------------------------------------------------------ a server that wants a token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with token authorisation, and its file of tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    mar(folder, "hostile", labels=HOSTILE)
    config = folder / "config.properties"
    config.write_text("default_workers_per_model=1\ndisable_system_metrics=true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where TorchServe writes its tokens
        with Server(folder, config=config, port=0) as server:
            yield server, folder / "key_file.json"


def test_a_server_that_wants_a_token_is_inspected_through_the_proxy(visit: Visitor, guarded: tuple[Server, Path]) -> None:
    """It refuses the page itself; the proxy adds the token, answers no other site's page, and tells nobody the token."""
    server, keys = guarded
    url = f"{server.url}/explanations/hostile"
    assert requests.get(url, headers={"Accept": "text/html"}, timeout=60).status_code == 400
    with proxy(url, token_from(keys)) as between:
        thread = threading.Thread(target=between.serve_forever)
        thread.start()
        try:
            page = visit(between.origin).explain(data_file(encoded(noise())), "hostile")
            expect(page.locator("#classes .class")).to_have_count(3)
            assert json.loads(keys.read_text())["inference"]["key"] not in page.content()
            _check_strangers(between.page)
        finally:
            between.shutdown()
            thread.join()


def _check_strangers(page: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for method in ("GET", "POST"):
            answer = requests.request(method, page, headers=headers, data=b"x", timeout=60)
            assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden")
    for path in ("/models", "/explanations/other", "/explanations/hostile/../../models"):
        answer = requests.get(page.replace("/explanations/hostile", path), timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")


# ------------------------------------------------------------------ the gallery


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, live: Server) -> Path:
    """The gallery of three pictures, one with a hostile name, and of a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("coffee.jpg", "rocket.jpg"):
        shutil.copy(ROOT / "examples" / name, folder)
    shutil.copy(CAT, folder / "<img src=x onerror=alert(5)>.jpg")
    (folder / "broken.png").write_bytes(b"\x00no picture\xff")
    out = folder / "out"
    assert explain.main([str(folder), "--url", live.url, "--model", DEMO, "--top-k", "2", "--out", str(out)]) == 1
    return out / "gallery.html"


def cards(page: Page, part: str) -> list[str]:
    """The text of a part of every card, in order."""
    return page.locator(f".card .{part}").all_inner_texts()


def test_the_gallery_sorts_and_filters(visit: Visitor, gallery: Path) -> None:
    """By class, confidence and region size; failures come last when sorting by a number, and can be shown alone."""
    page = visit("file://").page
    page.goto(gallery.as_uri())
    expect(page.locator("#count")).to_have_text("7 of 7, 1 failed")
    page.get_by_label("Sort by").select_option("down")
    shares = [float(text.rstrip(" %")) for text in cards(page, "share") if text]
    assert shares == sorted(shares, reverse=True)
    assert cards(page, "label")[-1] == "failed"
    page.get_by_label("Sort by").select_option("small")
    regions = [float(found[1]) for text in cards(page, "more") if (found := re.search(r"region (\S+) %", text))]
    assert len(regions) == 6
    assert regions == sorted(regions)

    page.locator("#label").select_option("espresso")
    assert cards(page, "label") == ["espresso"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Confidence from").fill("50")
    assert cards(page, "label") == ["espresso"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Region to").fill("16")
    assert set(cards(page, "label")) == {"espresso", "cup"}
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Show").select_option("error")
    assert cards(page, "label") == ["failed"]
    page.get_by_label("Find").fill("nothing like it")
    expect(page.locator("#none")).to_be_visible()


def test_the_gallery_is_whole_safe_and_accessible(visit: Visitor, gallery: Path, tmp_path: Path) -> None:
    """Alone in another folder it shows every picture; a hostile file name is only text; axe-core finds nothing."""
    alone = tmp_path / "gallery.html"
    shutil.copy(gallery, alone)
    tour = visit("file://", reduced_motion="reduce")
    page = tour.page
    page.goto(alone.as_uri())
    assert page.locator(".card img").evaluate_all("all => all.filter(each => each.naturalWidth > 100).length") == 6
    expect(page.locator(".card .file", has_text="<img src=x onerror=alert(5)>.jpg")).to_have_count(2)
    assert page.locator("img[src=x]").count() == 0
    page.evaluate(AXE.read_text("utf-8"))
    for viewport in (WIDE, NARROW):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert [each["id"] for each in page.evaluate("axe.run()")["violations"]] == []
