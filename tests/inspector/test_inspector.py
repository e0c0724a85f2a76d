"""The inspector page in a real browser, against a live server: pictures, classes, what can be taken away, what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
from playwright.sync_api import Route, expect
from tests.support.browser import CAT, DEMO, ROOT, Visitor, data_file, decoded, downloaded, pixels, set_range, shown
from tests.support.build import HOSTILE, encoded, noise
from tests.support.comparison.equality import assert_close
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

# ------------------------------------------------------------------ a picture and its heatmap


def test_a_picture_gets_predictions_and_a_heatmap(visit: Visitor, live: Server) -> None:
    """The classes, their probabilities and the sentence are those of the server's answer."""
    page = visit().explain()
    answer = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), timeout=HANG).json()

    rows = page.locator("#classes .class")
    assert rows.locator(".label").all_inner_texts() == [row["label"] for row in answer["classes"]]
    assert rows.locator(".share").all_inner_texts() == [f"{100 * row['probability']:.1f} %" for row in answer["classes"]]
    bars = rows.locator(".fill").evaluate_all("all => all.map(each => each.offsetWidth / each.parentElement.offsetWidth)")
    assert bars == pytest.approx([row["probability"] for row in answer["classes"]], abs=0.01)
    first = answer["classes"][0]["label"]
    expect(shown(page).locator(".name .label")).to_have_text(first)
    expect(shown(page).locator(".says")).to_contain_text(f"The model says {first}. It looked mostly in the middle")
    expect(page.locator("#took")).to_have_text(re.compile(r"^in \d+(\.\d)? m?s$"))
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
    expect(shown(page).locator(".name .label")).to_have_text(wanted)


def test_another_picture_replaces_everything(visit: Visitor) -> None:
    """The comparison ends, and classes, heatmap and command are the new picture's; of two at once the later stays."""
    tour = visit()
    page = tour.explain()
    page.get_by_label("Two classes").check(force=True)
    expect(shown(page, 1)).to_be_visible()
    held: list[Route] = []
    page.route("**/explanations/*", lambda route: route.continue_() if held else held.append(route))
    tour.give(ROOT / "examples" / "rocket.jpg")
    with page.expect_event("requestfailed", lambda request: request == held[0].request):
        tour.give(ROOT / "examples" / "coffee.jpg")

    expect(shown(page).locator(".name .label")).to_have_text("espresso")
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator("#compare").get_by_label("Off")).to_be_checked()
    expect(page.locator("#classes .class .label").first).to_have_text("espresso")
    expect(page.locator("#curl")).to_contain_text('data=@"coffee.jpg"')


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
    page.get_by_label("What the model saw; the dark edge was cut off").uncheck()
    expect(boxes).to_have_class(["region"])
    page.get_by_label("Brightest region").uncheck()
    expect(boxes).to_have_count(0)
    expect(page.locator("#percent")).to_have_text("90 %")
    assert len(tour.posts) == posts


def test_what_the_page_draws_is_what_the_server_draws(visit: Visitor, live: Server) -> None:
    """The picture that is saved differs from the server's overlay by a few levels at most (the browser blends in integers)."""
    page = visit().explain()
    headers = {"Accept": "image/png", "X-Explain-Target": "285", "X-Explain-Opacity": "0.6", "X-Explain-Colormap": "turbo"}
    wanted = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), headers=headers, timeout=HANG).content
    page.locator("#classes .class", has_text="Egyptian cat").click()
    page.locator("#colormap").select_option("turbo")
    set_range(page, "#opacity", 60)

    difference = np.abs(decoded(downloaded(page, "#png")) - decoded(wanted))
    assert difference.max() <= 4
    assert difference.mean() < 0.6


# ------------------------------------------------------------------ other classes, methods and layers


def test_a_typed_label_is_explained_and_a_near_miss_is_helped(visit: Visitor) -> None:
    """The server's own suggestions become buttons; a class that was asked for joins the list."""
    tour = visit()
    tour.expected = "status of 400"
    page = tour.explain()
    page.get_by_label("Explain another class").fill("golden retreiver")
    page.get_by_role("button", name="Explain", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert.locator("p")).to_have_text(re.compile('^No class has the label "golden retreiver"; the nearest are'))
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
    page = visit().explain(model="resnet18")
    pane = shown(page)
    expect(pane.locator(".use")).to_contain_text("gradcam++, the default")
    assert pane.locator("select.layer").locator("option").all_inner_texts() == ["layer4", "layer3", "all, multiplied"]
    expect(pane.locator(".made")).to_contain_text("7 × 7 cells at layer4")
    pane.locator("select.layer").select_option("layer3")
    expect(pane.locator(".made")).to_contain_text("14 × 14 cells at layer3")
    before = pixels(page)
    pane.locator("select.method").select_option("layercam")
    expect(pane.locator("canvas")).to_have_attribute("aria-label", re.compile("layercam"))
    assert pixels(page) != before


def test_all_layers_go_with_the_method_that_takes_them(visit: Visitor) -> None:
    """Whichever of the two is chosen; and a single layer, or another method, end it."""
    page = visit().explain(model="resnet18")
    pane = shown(page)
    method, layer = pane.locator("select.method"), pane.locator("select.layer")
    method.select_option("refinecam")
    expect(pane.locator(".made")).to_contain_text("14 × 14 cells at layer3, layer4, map from 0 to 0.")
    expect(layer).to_have_value("layer3,layer4")
    expect(page.locator("#curl")).to_contain_text("layer=layer3,layer4")
    layer.select_option("layer3")
    expect(pane.locator(".made")).to_contain_text("14 × 14 cells at layer3, map")
    expect(method).to_have_value("gradcam++")
    layer.select_option("layer3,layer4")
    expect(method).to_have_value("refinecam")
    method.select_option("contrast")
    expect(pane.locator(".made")).to_contain_text("7 × 7 cells at layer4")
    expect(layer).to_have_value("layer4")


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
    expect(shown(page, 1).locator("select.method")).to_have_value("contrast")
    expect(page.get_by_role("button", name="Show what tells them apart")).to_be_hidden()
    expect(names[1]).to_have_text("lynx")
    page.get_by_label("Side by side").check(force=True)
    assert page.locator(".pane .name .label").all_inner_texts() == ["Original", "lynx", "lynx"]
    assert decoded(downloaded(page, "#png")).shape[1] == 3 * 451
    page.locator("#compare").get_by_label("Off").check(force=True)
    page.get_by_label("Overlay").check(force=True)
    expect(page.locator(".pane")).to_have_count(1)


def test_a_comparison_may_end_while_a_class_is_on_its_way(visit: Visitor) -> None:
    """What was typed for the second heatmap is listed when it comes, and nothing more is asked."""
    page = visit().explain()
    page.get_by_label("Two classes").check(force=True)
    page.locator("#chosen").get_by_label("B").check(force=True)
    held: list[Route] = []
    page.route("**/explanations/*", lambda route: held.append(route))  # noqa: PLW0108 Playwright marks what it is given
    page.locator("#label").fill("espresso")
    with page.expect_request("**/explanations/*"):
        page.locator("#label").press("Enter")
    page.locator("#compare").get_by_label("Off").check(force=True)
    with page.expect_response("**/explanations/*"):
        held[0].continue_()

    expect(page.locator("#classes .class .label", has_text="espresso")).to_be_visible()
    expect(page.locator("#failure")).to_be_hidden()
    expect(page.locator(".pane")).to_have_count(1)
    assert len(held) == 1


def test_what_tells_two_classes_apart_is_one_click_away(visit: Visitor) -> None:
    """Two Grad-CAM++ maps look alike; the button asks for the contrast of both, and then goes away."""
    page = visit().explain()
    page.get_by_label("Two classes").check(force=True)
    button = page.get_by_role("button", name="Show what tells them apart")
    before = page.locator("#agreement").inner_text()
    button.click()

    for index in (0, 1):
        expect(shown(page, index).locator("select.method")).to_have_value("contrast")
        expect(shown(page, index).locator(".says")).to_contain_text("and not for the classes most like it")
    expect(button).to_be_hidden()
    expect(page.locator("#agreement")).not_to_have_text(before)


def test_the_model_is_asked_whether_a_heatmap_is_borne_out(visit: Visitor) -> None:
    """By a button, which makes room for the verdict and its curves; another class has a button of its own."""
    page = visit().explain()
    verdict = shown(page).locator(".verdict")
    expect(verdict).to_be_hidden()

    page.get_by_role("button", name="Is this borne out?").click()

    expect(verdict).to_contain_text("with the brightest fifth hidden, and with only it shown")
    expect(shown(page).locator(".curves polyline")).to_have_count(2)
    expect(page.get_by_role("button", name="Is this borne out?")).to_be_hidden()
    page.locator(".class").nth(1).click()
    expect(page.get_by_role("button", name="Is this borne out?")).to_be_visible()


def test_the_value_under_the_pointer_is_the_heatmaps(visit: Visitor, live: Server) -> None:
    """In the middle of a cell it is the cell's value; what the model did not see has none."""
    page = visit().explain()
    answer = requests.post(f"{live.url}/explanations/{DEMO}", data=CAT.read_bytes(), timeout=HANG).json()
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

    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=tmp_path, timeout=HANG)
    assert_close(json.loads(done.stdout), json.loads(downloaded(page, "#json")))
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

    expect(shown(page).locator(".name .label")).to_have_text("tiger cat")
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
    expect(shown(page).locator(".name .label")).to_have_text("tiger cat")
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
