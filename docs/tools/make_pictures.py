#!/usr/bin/env python3
"""Makes the README's pictures from a running demo (scripts/demo.sh): docs/tools/make_pictures.py [URL]

`explained.webp` shows the coffee, its prediction, and heatmaps for two classes; `inspector-light.webp` and
`inspector-dark.webp` are screenshots of the inspector page, taken with Chromium (best with the font Inter installed).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

import camserve

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
EXAMPLES = PICTURES.parents[1] / "examples"
URL = "http://127.0.0.1:8080/explanations/efficientnet_lite0"
CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
TARGETS = ("espresso", "plate")
METHOD = "contrast"
TILE, GAP, STRIP = (400, 267), 16, 104
PAPER, INK, QUIET, BAR = "#ffffff", "#12161c", "#535d6b", "#0a6b72"


def main(url: str = URL) -> None:
    """Makes all three."""
    explained(url).save(PICTURES / "explained.webp", quality=88, method=6)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM.split())
        for scheme in ("light", "dark"):
            size: ViewportSize = {"width": 1280, "height": 946 if scheme == "light" else 776}
            page = chromium.new_page(viewport=size, color_scheme=scheme)
            page.goto(url)
            shot = compared(page) if scheme == "dark" else overlaid(page)
            Image.open(io.BytesIO(shot)).convert("RGB").save(PICTURES / f"inspector-{scheme}.webp", quality=88, method=6)
        chromium.close()


def explained(url: str) -> Image.Image:
    """The picture with the most probable classes, and the heatmaps of two classes."""
    with camserve.Client(url) as client:
        result = client.explain(EXAMPLES / "coffee.jpg", target=TARGETS, method=METHOD)
    canvas = Image.new("RGB", (3 * TILE[0] + 2 * GAP, TILE[1] + STRIP), PAPER)
    draw = ImageDraw.Draw(canvas)
    with Image.open(EXAMPLES / "coffee.jpg") as original:
        canvas.paste(original.resize(TILE), (0, 0))
    top = result.predictions[:3]
    for row, prediction in enumerate(top):
        y = TILE[1] + 16 + 28 * row
        draw.text((0, y), prediction.label, INK, font(17))
        draw.rectangle((150, y + 3, 150 + max(2, 180 * prediction.probability), y + 15), BAR)
        draw.text((TILE[0], y), f"{prediction.probability:.1%}", INK, font(17), anchor="ra")
    for column, explanation in enumerate(result.explanations, 1):
        left = column * (TILE[0] + GAP)
        with Image.open(io.BytesIO(explanation.overlay or b"")) as overlay:
            canvas.paste(overlay.convert("RGB").resize(TILE), (left, 0))
        draw.text((left, TILE[1] + 16), f"What speaks for {explanation.label!r}", INK, font(17))
        draw.text((left, TILE[1] + 44), "and not for its nearest rivals", QUIET, font(15))
    return canvas


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def overlaid(page: Page) -> bytes:
    """The cat, with the pointer on its heatmap."""
    page.locator("#samples button", has=page.get_by_alt_text("cat")).click()
    expect(page.locator("#work")).to_be_visible()
    box = page.locator(".pane canvas").bounding_box()
    if box is not None:
        page.mouse.move(box["x"] + 0.36 * box["width"], box["y"] + 0.64 * box["height"])
    return page.screenshot()


def compared(page: Page) -> bytes:
    """The coffee: two classes side by side."""
    page.locator("#samples button", has=page.get_by_alt_text("coffee")).click()
    expect(page.locator("#work")).to_be_visible()
    page.locator("#colormap").select_option("inferno")
    page.get_by_label("Two classes").check(force=True)
    page.get_by_label("Explain another class").fill(TARGETS[1])
    page.keyboard.press("Enter")
    expect(page.locator(".pane .label").nth(1)).to_have_text(TARGETS[1])
    for pane in (0, 1):
        page.locator(".pane select.method").nth(pane).select_option(METHOD)
        expect(page.locator(".pane canvas").nth(pane)).to_have_attribute("aria-label", f"Heatmap of {TARGETS[pane]}, {METHOD}. "
            "Arrow keys move a cursor that reads its values.")  # fmt: skip
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    return page.screenshot()


if __name__ == "__main__":
    main(*sys.argv[1:])
