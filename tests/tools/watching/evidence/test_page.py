"""The page of what was kept, in a real browser: as a file, and live with marks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect
from tests.support.browser import NARROW, Visit, axe, tab_to
from tests.support.processes.waiting import HANG

from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries
from camserve.tools.commands.inspector import Proxy
from camserve.tools.watching.evidence import command
from camserve.tools.watching.evidence.marks import read_marks
from camserve.tools.watching.evidence.sources import open_evidence

Look = Callable[..., Visit]


@pytest.fixture(scope="module")
def written(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a file, alone in a folder."""
    file = tmp_path_factory.mktemp("page") / "evidence.html"
    assert command.main([str(moved), "--alert", "CamserveAttentionDrift", "--out", str(file)]) == 0
    return file


@pytest.fixture
def kept(moved: Path, tmp_path: Path) -> Path:
    """What was kept, to be marked."""
    return Path(shutil.copytree(moved, tmp_path / "kept"))


def at(page: Page, file: Path) -> Page:
    """Goes to the file."""
    page.goto(file.as_uri())
    return page


def ids(page: Page, inside: str) -> list[str]:
    """The pictures that are shown, in order."""
    found: list[str] = page.locator(f"{inside} .shot").evaluate_all("all => all.map(each => each.dataset.id)")
    return found


def test_the_page_begins_with_what_moved(look: Look, written: Path) -> None:
    """The alert's statistic that drifted most, its histogram, and the pictures of the bin that grew most, by where they look."""
    page = at(look().page, written)
    report = json.loads(page.locator("#report").text_content() or "")
    expect(page.locator("#statistic")).to_have_text("centroid_x")
    expect(page.locator("#statistics button").first).to_have_class(re.compile("drifted"))
    expect(page.locator("#psi")).to_have_text(re.compile(r"^PSI 0\.\d+ · threshold 0\.1"))
    expect(page.locator("#rests")).to_contain_text("360 pictures of the random sample, which stand for about 1,440 predictions")
    expect(page.locator("#rests")).to_contain_text("before: 600")

    first = report["statistics"][0]
    heights = page.locator(".bin .bar.now").evaluate_all("all => all.map(each => each.offsetHeight)")
    assert heights.index(max(heights)) == first["now"].index(max(first["now"]))
    grown = first["moved"].index(max(first["moved"]))
    expect(page.locator("#groups h3").first).to_have_text(f"centroid_x {first['labels'][grown]}")
    place = report["names"].index("centroid_x")
    cards = {card["id"]: card for card in report["cards"]}
    assert {cards[each]["bins"][place] for each in ids(page, ".group:first-child")} == {grown}
    assert {cards[each]["bins"][place] for each in ids(page, f".bin:nth-child({grown + 1})")} == {grown}
    assert cards[ids(page, ".group:first-child")[0]]["label"] == "tabby"


def test_pictures_are_drawn_with_their_heatmaps(look: Look, written: Path) -> None:
    """Where the map has its centre the picture turns yellow; without the heatmap it is the picture."""
    page = at(look().page, written)
    shot = page.locator("#groups .shot canvas").first
    expect(shot).to_have_attribute("data-drawn", "true")
    brightest = """canvas => { const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let best = -1, at = 0; for (let p = 0; p < data.length; p += 4) { const y = data[p] + data[p + 1] - data[p + 2];
        if (y > best) { best = y; at = p / 4; } } return (at % canvas.width) / canvas.width; }"""
    report = json.loads(page.locator("#report").text_content() or "")
    card = next(each for each in report["cards"] if each["id"] == ids(page, "#groups")[0])
    left, _, right, _ = card["view"]
    centre = (left + card["values"][report["names"].index("centroid_x")] * (right - left)) / card["width"]
    assert shot.evaluate(brightest) == pytest.approx(centre, abs=0.12)


def test_the_page_sorts_filters_and_opens_a_bin(look: Look, written: Path) -> None:
    """By value, by class, by why it was kept; a bin alone; and everything again."""
    page = at(look().page, written)
    page.locator("#kind").select_option("unusual")
    expect(page.locator("#count")).to_have_text(re.compile("^4 of"))
    page.locator("#label").select_option("<img src=x onerror=alert(7)>")
    expect(page.locator("#count")).to_have_text(re.compile("^1 of"))
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#count")).to_have_text(re.compile("^300 of"))
    page.locator("#sort").select_option("down")
    values = [
        float(re.findall(r"centroid_x ([\d.]+)", text)[0]) for text in page.locator("#groups .shot .more").all_text_contents()
    ]
    assert values == sorted(values, reverse=True)
    page.locator("#sort").select_option("moved")
    page.locator(".bin .bars").nth(2).click()
    expect(page.locator("#groups .group")).to_have_count(1)
    expect(page.locator(".bin .bars").nth(2)).to_have_attribute("aria-pressed", "true")
    page.locator("#statistics button", has_text="entropy").click()
    expect(page.locator("#statistic")).to_have_text("entropy")
    expect(page.locator(".bin .bars[aria-pressed=true]")).to_have_count(0)


def test_everything_can_be_done_without_a_mouse(look: Look, kept: Path, serve_pages: Callable[..., Proxy]) -> None:
    """A statistic, a bin, a picture, the next one, a mark with a note, and back to where it began."""
    server = serve_pages(kept)
    page = look(server.origin).page
    page.goto(f"{server.origin}/evidence?stat=centroid_x")
    tab_to(page, "#statistics li:nth-child(2) button")
    page.keyboard.press("Enter")
    expect(page.locator("#statistics li:nth-child(2) button")).to_have_attribute("aria-pressed", "true")
    tab_to(page, ".bin:nth-child(3) .bars", 90)
    page.keyboard.press("Space")
    expect(page.locator(".bin:nth-child(3) .bars")).to_have_attribute("aria-pressed", "true")
    tab_to(page, "#groups .shot", 90)
    opened = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("Enter")
    expect(page.locator("#picture")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#facts-of")).not_to_contain_text(opened)
    marked = page.locator("#facts-of dt:text-is('id') + dd").inner_text()
    tab_to(page, "input[name=verdict]")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    tab_to(page, "#note")
    page.keyboard.type("the watermark")
    page.keyboard.press("Enter")
    expect(page.locator("#marked")).to_have_text(re.compile(r"^marked wrong: the watermark \(nobody was named"))
    page.keyboard.press("Escape")
    expect(page.locator("#picture")).to_be_hidden()
    page.wait_for_function("ids => ids.includes(document.activeElement.dataset.id)", arg=[opened, marked])  # once it has closed
    expect(page.locator(f"#groups .shot.wrong[data-id='{marked}']")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(look: Look, moved: Path, tmp_path: Path, scheme: str) -> None:
    """No violation of WCAG 2.2 AA or of axe-core's best practices, contrast included, wide and narrow; with a picture open too."""
    file = tmp_path / "evidence.html"
    assert command.main([str(moved), "--pictures", "25", "--out", str(file)]) == 0
    page = at(look(color_scheme=scheme).page, file)
    assert axe(page) == []
    page.locator("#groups .shot").first.click()
    expect(page.locator("#picture")).to_be_visible()
    assert axe(page) == []


def test_nothing_is_wider_than_a_phone(look: Look, written: Path) -> None:
    """At 390 pixels nothing scrolls sideways, and every control is large enough for a finger."""
    page = at(look(viewport=NARROW).page, written)
    code = """() => [...document.querySelectorAll("button, select, input, .button")].filter(e => e.checkVisibility())
        .map(e => [e.outerHTML.slice(0, 60), e.getBoundingClientRect()])
        .filter(([, box]) => box.left < 0 || box.right > 390 || box.height < 18).map(([text]) => text)"""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(code) == []
    page.locator("#groups .shot").first.click()
    expect(page.locator("#picture")).to_be_visible()
    assert page.locator("#picture").evaluate("each => each.scrollWidth <= each.clientWidth + 1")


def test_a_file_asks_nobody_and_takes_no_marks(look: Look, written: Path) -> None:
    """Its policy lets it ask for nothing; hostile labels are only text; what was marked is shown, and nothing can be."""
    page = at(look().page, written)
    text = written.read_text("utf-8")
    assert "connect-src 'none'" in text
    assert "unsafe" not in text.split("</title>")[0]
    assert "<img src=x" not in text
    assert (written.stat().st_mode & 0o777) == 0o600
    expect(page.locator("#period")).to_be_hidden()
    page.locator("#groups .shot").first.click()
    expect(page.locator("#marking")).to_be_hidden()
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save the picture").click()
    assert Path(saved.value.path()).read_bytes()[8:12] == b"WEBP"


def test_another_time_and_another_comparison_are_asked_for(look: Look, kept: Path, serve_pages: Callable[..., Proxy]) -> None:
    """The page's address says what it shows; what is no time is told in words, and the page stays as it is."""
    server = serve_pages(kept)
    tour = look(server.origin)
    tour.expected = "status of 400"
    page = tour.page
    page.goto(f"{server.origin}/evidence")
    expect(page.locator("#rests")).to_contain_text("360 pictures")
    page.locator("#since").fill("35m")
    page.locator("#against").select_option("before")
    page.locator("#period button").click()
    expect(page.locator("#then")).to_contain_text("expected by 20")
    expect(page.locator("#about")).to_contain_text("4 kept")
    assert "since=35m" in page.url
    assert "against=before" in page.url
    page.locator("#since").fill("lunch")
    page.locator("#period button").click()
    expect(page.get_by_role("alert")).to_contain_text(
        'expected how long ago (30m, 2h, 7d) or a time (2026-01-31T14:00Z), got "lunch"'
    )
    expect(page.locator("#about")).to_contain_text("4 kept")


def test_marks_lie_beside_their_records(kept: Path, serve_pages: Callable[..., Proxy]) -> None:
    """With who made them, as the proxy says; the last one counts, none is lost, and they are counted for Prometheus."""
    server = serve_pages(kept, user_header="x-forwarded-user")
    home = f"{server.origin}/evidence"
    card = requests.get(f"{home}/report.json", timeout=HANG).json()["cards"][0]
    for who, verdict in (("ann", "wrong"), ("bob", "bad_input")):
        sent = {"model": "cats", "name": card["name"], "verdict": verdict, "note": "<b>"}
        answer = requests.post(f"{home}/marks", json=sent, headers={"X-Forwarded-User": who}, timeout=HANG)
        assert (answer.status_code, answer.json()["who"]) == (200, who)

    report = requests.get(f"{home}/report.json", timeout=HANG).json()
    assert next(each for each in report["cards"] if each["id"] == card["id"])["mark"]["verdict"] == "bad_input"
    evidence = open_evidence(str(kept))
    entry = next(each.entry for each in evidence.shelf.read(_all(kept)) if each.card["id"] == card["id"])
    told = read_marks(evidence.store, [entry])[entry.name]
    assert [(mark.who, mark.verdict, mark.note) for mark in told] == [("ann", "wrong", "<b>"), ("bob", "bad_input", "<b>")]
    metrics = requests.get(f"{home}/metrics", timeout=HANG).text
    assert 'camserve_evidence_marks_total{model_name="cats",verdict="wrong"} 1\n' in metrics
    assert 'camserve_evidence_marks_total{model_name="cats",verdict="right"} 0\n' in metrics
    assert command.main([str(kept), "--delete", card["id"]]) == 0
    assert not [path for path in kept.rglob("*") if card["id"] in path.name]


def _all(kept: Path) -> list[Entry]:
    return list_entries(open_evidence(str(kept)).store)
