"""The gallery in a real browser: sorted, filtered, whole and safe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.support.browser import CAT, DEMO, NARROW, ROOT, WIDE, Visitor, axe

from camserve.tools.commands import explain
from camserve.tools.commands.serve import Server

pytestmark = pytest.mark.live


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
    """The text of a part of every card, in order; what is not on the screen has no `innerText`."""
    return page.locator(f".card .{part}").all_text_contents()


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
    page.get_by_label("Show").select_option("other")
    assert len(cards(page, "label")) == 3
    assert all(text.startswith("predicted ") for text in cards(page, "more"))
    page.get_by_label("Find").fill("nothing like it")
    expect(page.locator("#none")).to_be_visible()


def test_the_gallery_is_whole_safe_and_accessible(visit: Visitor, gallery: Path, tmp_path: Path) -> None:
    """Alone in another folder it shows every picture; a hostile file name is only text; axe-core finds nothing."""
    alone = tmp_path / "gallery.html"
    shutil.copy(gallery, alone)
    tour = visit("file://", reduced_motion="reduce")
    page = tour.page
    page.goto(alone.as_uri())
    widths = """all => Promise.all(all.map(async (each) => {
        each.loading = "eager"; await each.decode(); return each.naturalWidth; }))"""
    assert [width > 100 for width in page.locator(".card:not(.bad) img").evaluate_all(widths)] == [True] * 6
    expect(page.locator(".card .file", has_text="<img src=x onerror=alert(5)>.jpg")).to_have_count(2)
    assert page.locator("img[src=x]").count() == 0
    assert axe(page) == []
    for viewport in (WIDE, NARROW):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
