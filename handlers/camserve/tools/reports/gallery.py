"""Writes the gallery: a page to look through many explanations, which sorts and filters them; one file holds everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camserve.inspector.html import fill, write_policy, write_script_json
from camserve.tools.reports.journal import Row
from camserve.tools.reports.pictures import thumbnail

HERE = Path(__file__).parent
THUMB = 360
"""Longest side of the pictures in the page, in pixels."""


def write(rows: Sequence[Row], folder: Path) -> Path:
    """Writes `gallery.html`, sorted by file name, into the folder of the rows' overlays; returns its path."""
    rows = sorted(rows, key=lambda row: str(row["file"]))  # they come in the order of the answers
    style, script = ((HERE / f"gallery.{kind}").read_text("utf-8") for kind in ("css", "js"))
    parts = {
        "policy": write_policy(style, [script]),
        "style": style,
        "cards": write_script_json([card for row in rows for card in _cards(row, folder)]),
        "script": script,
    }
    page = folder / "gallery.html"
    page.write_text(fill((HERE / "gallery.html").read_text("utf-8"), parts), "utf-8")
    return page


def _cards(row: Row, folder: Path) -> list[dict[str, Any]]:
    """Makes a card for each explanation, or one for the error, or for a picture in which no label reaches the threshold."""
    if "error" in row:
        return [{"file": row["file"], "error": f"{row['error']['type']}: {row['error']['message']}"}]
    first, kind = row["classes"][0], row.get("scores", "softmax")
    common = {"file": row["file"], "method": row["method"], "layer": row["layer"]}
    if not row["explanations"]:
        nothing = {"label": "no label reaches the threshold", "target": None, "probability": None, "amount": "", "first": None}
        return [{**common, **nothing, "region": None, "warnings": [], "picture": None, "overlay": None}]
    return [
        {
            **common,
            "label": each["label"],
            "target": each["target"],
            "probability": None if kind == "none" else each["probability"],
            "amount": f"{each['probability']:.5g}" if kind == "none" else None,
            "first": None if kind != "softmax" or first["index"] == each["target"] else first["label"],
            "region": _share(each["region"], row["image"]),
            "warnings": each["warnings"],
            "verdict": (each.get("check") or {}).get("verdict", ""),
            "picture": _thumb(folder, each.get("overlay")),
            "overlay": each.get("overlay"),
        }
        for each in row["explanations"]
    ]


def _share(region: Sequence[float] | None, image: dict[str, Any] | None) -> float | None:
    """Computes the region's share of the picture, 0 to 1."""
    if not region or not image:
        return None
    left, top, right, bottom = region
    return float((right - left) * (bottom - top) / (image["width"] * image["height"]))


def _thumb(folder: Path, overlay: str | None) -> str | None:
    """Encodes a small overlay as a data URL; None where there is none, or its file is gone or is no picture."""
    if overlay is None:
        return None
    try:
        return thumbnail(folder / overlay, THUMB)
    except Exception:  # noqa: BLE001 a server drew it, and Pillow raises many things about a damaged picture
        return None
