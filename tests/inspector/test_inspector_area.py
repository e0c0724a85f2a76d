"""A box on the inspector's picture, and contours over it, in a real browser: what they show is what the server says."""

from __future__ import annotations

import io
import json
import re
import subprocess
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from tests.support.browser import CAT, DEMO, ROOT, Visitor, axe, data_file, decoded, downloaded, shown
from tests.support.build import encoded, noise
from tests.support.comparison.equality import assert_close
from tests.support.processes.waiting import HANG

from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live

EDGES = ("Left", "Top", "Right", "Bottom")


def ask(live: Server, **options: str) -> dict[str, Any]:
    """What the server says of the cat."""
    answer = requests.post(f"{live.url}/explanations/{DEMO}", files={"data": CAT.read_bytes()}, data=options, timeout=HANG)
    found: dict[str, Any] = answer.json()
    return found


def box_of(page: Page) -> list[int]:
    """The box whose share is shown, as its numbers say."""
    return [int(page.get_by_label(edge, exact=True).input_value()) for edge in EDGES]


def told(page: Page, pane: int = 0) -> Locator:
    """What a pane says of the box."""
    return shown(page, pane).locator(".inside")


def sentence(explanation: dict[str, Any]) -> str:
    """What the page should say of an explanation."""
    share, area = (f"{100 * explanation['inside'][name]:.1f} %" for name in ("share", "area"))
    where = "in it" if explanation["inside"]["peak"] else "outside of it"
    what = f"{share} of what speaks for {explanation['label']} lies in the box"
    return f"{what}, which covers {area} of what the model saw. The brightest cell lies {where}."


def move(page: Page, x: float, y: float) -> None:
    """Moves the mouse to a point of the cat's picture."""
    box = shown(page).locator("canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"] / 451, box["y"] + y * box["height"] / 300)


def fill(page: Page, *edges: int) -> None:
    """Types a box's numbers, as far as they go."""
    for label, edge in zip(EDGES, edges, strict=False):
        page.get_by_label(label, exact=True).fill(str(edge))
        page.get_by_label(label, exact=True).press("Tab")


@pytest.mark.parametrize("way", ["drag", "clicks"])
def test_a_box_is_drawn_with_the_mouse(visit: Visitor, live: Server, way: str) -> None:
    """From corner to corner, whichever comes first; its share is the server's, and so are the JSON and the command."""
    page = visit().explain()
    page.get_by_role("button", name="Draw a box").click()
    move(page, 330.5, 289.5)
    page.mouse.down()
    if way == "clicks":
        page.mouse.up()
    move(page, 120.5, 20.5)
    drawn = shown(page).locator(".boxes .drawn")
    expect(drawn).to_have_attribute("y", re.compile(r"^(19|20|21)$"))
    if way == "clicks":
        page.mouse.down()
    page.mouse.up()

    expect(told(page)).to_contain_text("lies in the box")
    box = box_of(page)
    assert box == pytest.approx([120, 20, 331, 290], abs=1)
    assert [int(drawn.get_attribute(name) or "") for name in ("x", "y")] == box[:2]
    answer = ask(live, inside=json.dumps(box), target="282")
    expect(told(page)).to_have_text(sentence(answer["explanations"][0]))
    assert page.get_by_role("button", name="Draw a box").get_attribute("aria-pressed") == "false"
    page.locator("summary").click()
    command = page.locator("#curl").inner_text()
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=CAT.parent, timeout=HANG)
    assert_close(json.loads(done.stdout), json.loads(downloaded(page, "#json")))
    assert_close(json.loads(done.stdout)["explanations"], answer["explanations"])


def test_a_box_is_drawn_with_the_keyboard(visit: Visitor, live: Server) -> None:
    """The cursor is moved to two corners; Escape lets go."""
    page = visit().explain()
    page.get_by_role("button", name="Draw a box").press("Enter")
    page.keyboard.press("ArrowLeft")  # the cursor comes, in the middle
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(f"Shift+{key}")
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_have_text("Now the opposite corner.")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(f"Shift+{key}")
    page.keyboard.press(" ")

    expect(told(page)).to_contain_text("lies in the box")
    assert box_of(page) == [135, 120, 226, 210]
    expect(told(page)).to_have_text(sentence(ask(live, inside="[135,120,226,210]")["explanations"][0]))
    page.get_by_role("button", name="Draw a box").press("Enter")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator("#note")).to_have_text("")
    assert box_of(page) == [135, 120, 226, 210]


def test_a_box_is_given_in_numbers_and_stays_for_all_classes(visit: Visitor, live: Server) -> None:
    """One request tells it of all listed classes; in a comparison each pane has its own share; without the box there is none."""
    tour = visit()
    page = tour.explain()
    fill(page, 100, 30, 90, 200)
    expect(page.locator("#note")).to_have_text("Left must be less than right, and top less than bottom.")
    fill(page, 100, 30, 500, 200)
    expect(page.locator("#note")).to_have_text("Edges are whole pixels of the picture, which has 451 × 300.")
    posts = len(tour.posts)
    fill(page, 100, 30, 300, 200)
    expect(told(page)).to_contain_text("lies in the box")
    answer = ask(live, inside="[100,30,300,200]", top_k="5")
    for row, explanation in enumerate(answer["explanations"]):
        page.locator("#classes .class").nth(row).click()
        expect(told(page)).to_have_text(sentence(explanation))
    assert len(tour.posts) == posts + 1

    page.get_by_label("Two methods").check(force=True)
    expect(told(page, 1)).to_contain_text("lies in the box")
    assert told(page, 0).inner_text() != told(page, 1).inner_text()
    assert axe(page) == []
    page.get_by_role("button", name="Remove it").click()
    for pane in (0, 1):
        expect(told(page, pane)).to_be_hidden()
    expect(shown(page).locator(".boxes .drawn")).to_have_count(0)
    expect(page.locator("#curl")).not_to_contain_text("inside")


def test_contours_lie_where_the_server_has_them(visit: Visitor, live: Server) -> None:
    """On the page as its polygons, and in the picture that is saved as in its overlay."""
    page = visit().explain()
    plain = decoded(downloaded(page, "#png"))
    levels = "[0.25,0.5,0.75]"
    page.get_by_label("Contours").select_option(levels)
    line = shown(page).locator(".boxes .contour")
    expect(line).to_have_count(1)

    (explanation,) = ask(live, contours=levels)["explanations"]
    rings = [ring for contour in explanation["contours"] for polygon in contour["coordinates"] for ring in polygon]
    numbers = [float(each) for each in re.findall(r"-?[0-9.]+", line.get_attribute("d") or "")]
    assert numbers == pytest.approx([value for ring in rings for point in ring[:-1] for value in point], abs=0.02)
    wanted = requests.post(
        f"{live.url}/explanations/{DEMO}",
        files={"data": CAT.read_bytes()},
        data={"contours": levels, "target": "282"},
        headers={"Accept": "image/png"},
        timeout=HANG,
    ).content
    ours, theirs = (np.abs(each - plain).max(2) > 64 for each in (decoded(downloaded(page, "#png")), decoded(wanted)))
    assert 0.01 < ours.mean() < 0.1
    for one, other in ((ours, theirs), (theirs, ours)):  # each smooths lines in its own way
        near = cv2.dilate(other.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert near[one].mean() > 0.995
    page.get_by_label("Contours").select_option("")
    expect(line).to_have_count(0)


def test_a_check_stays_when_a_box_comes(visit: Visitor) -> None:
    """What was found out is not asked for again, and the next picture begins without a box, but with contours."""
    tour = visit()
    page = tour.explain()
    page.get_by_role("button", name="Is this borne out?").click()
    expect(shown(page).locator(".verdict")).to_be_visible()
    page.get_by_label("Contours").select_option("0.5")
    fill(page, 100, 30, 300, 200)
    expect(told(page)).to_contain_text("lies in the box")
    expect(shown(page).locator(".verdict")).to_be_visible()
    tour.give(ROOT / "examples" / "coffee.jpg")

    expect(shown(page).locator(".name .label")).to_have_text("espresso")
    expect(shown(page).locator(".boxes .contour")).to_have_count(1)
    expect(told(page)).to_be_hidden()
    expect(page.get_by_label("Left", exact=True)).to_have_value("")


def test_a_box_that_the_server_refuses_goes_away(visit: Visitor) -> None:
    """A picture that is stored turned has no box that is surely meant; its classes are still explained."""
    tour = visit()
    tour.expected = "status of 400"
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(noise(96, 64)), "JPEG", exif=exif)
    page = tour.explain(data_file(turned, "turned.jpg"))
    fill(page, 10, 10, 30, 40)

    expect(page.get_by_role("alert")).to_contain_text("stored turned")
    expect(page.get_by_label("Left", exact=True)).to_have_value("")
    posts = len(tour.posts)
    page.get_by_label("Contours").select_option("0.5")
    expect(shown(page).locator(".boxes .contour")).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(tour.posts) == posts + 1


def test_a_tensor_has_no_box(visit: Visitor) -> None:
    """Nor contours: there is no picture that they could lie on."""
    page = visit().explain({"name": "x.npy", "mimeType": "application/octet-stream", "buffer": _tensor()})

    expect(page.get_by_role("button", name="Draw a box")).to_be_hidden()
    expect(page.get_by_label("Contours")).to_be_hidden()


def _tensor() -> bytes:
    pixels = np.asarray(Image.open(CAT).convert("RGB").resize((224, 224)), np.float32)
    content = io.BytesIO()
    np.save(content, (pixels.transpose(2, 0, 1) - 127) / 128)
    return bytes(content.getvalue())
