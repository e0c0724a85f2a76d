#!/usr/bin/env python3
"""Draws the documentation's figures with `camserve.Model`: docs/tools/draw.py ARCHIVE, the demo's

`cat.webp` is what camserve gives: the picture, the prediction, and the default method's heatmap. `methods.webp` is one class by
all six methods; `view.webp` shows what `view` and `region` of an answer are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import camserve
from camserve.core.config import METHODS

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
EXAMPLES = PICTURES.parents[1] / "examples"
GAP, STRIP = 16, 34
PAPER, INK, BAR, VIEW, REGION = "#ffffff", "#12161c", "#0a6b72", "#0a6b72", "#d1495b"
TITLES = {
    "gradcam++": "Grad-CAM++",
    "gradcam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGrad-CAM",
    "contrast": "Finer-CAM (contrast)",
}


def main(archive: str) -> None:
    """Makes all three."""
    model = camserve.Model.from_archive(archive)
    for name, figure in {"cat": given(model), "methods": compared(model), "view": placed(model)}.items():
        figure.save(PICTURES / f"{name}.webp", quality=88, method=6)


def explained(model: camserve.Model, name: str, **options: object) -> camserve.Explanation:
    """One of the examples' explanation."""
    (explanation,) = model.explain(EXAMPLES / f"{name}.jpg", **options)  # type: ignore[arg-type]
    return explanation


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def given(model: camserve.Model) -> Image.Image:
    """The cat beside its heatmap, and the most probable classes below."""
    explanation = explained(model, "cat")
    picture = Image.open(EXAMPLES / "cat.jpg")
    width, height = picture.size
    canvas = Image.new("RGB", (2 * width + GAP, height + 3 * 26 + 14), PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(explanation.overlay.convert("RGB"), (width + GAP, 0))
    draw = ImageDraw.Draw(canvas)
    for row, score in enumerate(explanation.classes[:3]):
        y = height + 12 + 26 * row
        draw.text((0, y), score.label, INK, font(17))
        draw.rectangle((150, y + 4, 150 + max(2, 230 * score.probability), y + 16), BAR)
        draw.text((width, y), f"{score.probability:.1%}", INK, font(17), anchor="ra")
    draw.text((width + GAP, height + 12), f"What speaks for {explanation.label!r}, and where", INK, font(17))
    return canvas


def compared(model: camserve.Model) -> Image.Image:
    """The plate below the cup of espresso, by each method."""
    width, height = 300, 200
    canvas = Image.new("RGB", (3 * width + 2 * GAP, 2 * (height + STRIP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, method in enumerate(METHODS):
        left, top = index % 3 * (width + GAP), index // 3 * (height + STRIP + GAP)
        overlay = explained(model, "coffee", target="plate", method=method).overlay.convert("RGB")
        canvas.paste(overlay.resize((width, height)), (left, top))
        draw.text((left, top + height + 6), TITLES[method], INK, font(16))
    return canvas


def placed(model: camserve.Model) -> Image.Image:
    """The cat with its heatmap, and the two rectangles of the answer over it."""
    explanation = explained(model, "cat")
    canvas = explanation.overlay.convert("RGB").resize((902, 600))
    draw = ImageDraw.Draw(canvas)
    for name, box, colour in (("view", explanation.view, VIEW), ("region", explanation.region, REGION)):
        if box is None:
            continue
        left, top, right, bottom = (2 * edge for edge in (box.left, box.top, box.right, box.bottom))
        draw.rectangle((left, top, right, bottom), outline=colour, width=5)
        draw.rectangle((left, top, left + 12 + 11 * len(name), top + 30), colour)
        draw.text((left + 8, top + 4), name, PAPER, font(19))
    return canvas


if __name__ == "__main__":
    main(*sys.argv[1:])
