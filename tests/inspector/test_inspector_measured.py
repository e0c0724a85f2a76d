"""The inspector on an archive whose layer and method were measured on pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from tests.support.browser import CAT, Visit, shown
from tests.support.build import PLAIN
from tests.support.models.measured import measured_archive

from camserve.tools.packaging.contents.files import copy_package
from camserve.tools.serving.asgi_server import AsgiServer

pytestmark = pytest.mark.live

AT_ONCE = """(pane, method) => {
  const select = pane.querySelector("select.method");
  select.value = method;
  select.dispatchEvent(new Event("change"));
  pane.querySelector("button.proof").click();
}"""
"""Chooses a method and asks for a check before the server has given its map."""


def test_a_check_says_by_which_measurement_layer_and_method_were_chosen(chromium: Browser, tmp_path: Path) -> None:
    """Beside its own verdict; of a method that was not measured there is nothing to say."""
    store = tmp_path / "store"
    store.mkdir()
    directory = measured_archive(tmp_path / "bright", {**PLAIN, "checks": True})  # the page asks for them one by one all the same
    copy_package(directory)
    Path(shutil.make_archive(str(store / "bright"), "zip", directory)).rename(store / "bright.mar")
    with AsgiServer(store) as server:
        page = chromium.new_page(viewport={"width": 1280, "height": 860})
        try:
            visit = Visit(page, server.url)
            visit.watch()
            visit.explain(CAT, "bright")
            told = shown(page).locator(".measured")
            shown(page).evaluate(AT_ONCE, "gradcam")
            expect(told).to_contain_text("was chosen by measuring on 5 pictures, 2026-11-30")
            shown(page).locator("select.method").select_option("gradcam++")
            page.get_by_role("button", name="Is this borne out?").click()
            expect(told).to_contain_text("was measured on 5")
            expect(told).to_contain_text("support -0.20 (-0.20 to -0.20) on average; its maps stay alike")
            shown(page).locator("select.method").select_option("layercam")
            page.get_by_role("button", name="Is this borne out?").click()
            expect(shown(page).locator(".verdict")).to_contain_text("with the brightest fifth hidden")
            expect(told).to_have_text("")
            assert visit.faults == []
        finally:
            page.close()
