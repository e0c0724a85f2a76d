"""The report of a comparison: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from camserve.inspector.html import fill, write_policy, write_script_json
from camserve.tools.client.client import CamserveError
from camserve.tools.client.sources import AnswerSource
from camserve.tools.reports.comparison.agreement import Agreement
from camserve.tools.reports.comparison.classes import Classes
from camserve.tools.reports.comparison.limits import LIMITS
from camserve.tools.reports.pictures import thumbnail

HERE = Path(__file__).parent
THUMB = 420
"""Longest side of the overlays in the report, in pixels."""


def draw_cards(
    sources: Sequence[AnswerSource], classes: Classes, rows: Sequence[Agreement], read: Callable[[str], bytes | None]
) -> list[dict[str, Any]]:
    """Draws both archives' overlays of the compared class: each row with `pictures`, two data URLs or None.

    Args:
        read: reads a picture by a row's `file`; None where it is gone.
    """
    cards = []
    for row in rows:
        picture = read(row.file)
        targets = (row.index, classes.match(row.index))
        overlays = [
            None if picture is None else _overlay(source, picture, target)
            for source, target in zip(sources, targets, strict=True)
        ]
        cards.append({**asdict(row), "pictures": overlays})
    return cards


def _overlay(source: AnswerSource, picture: bytes, target: int) -> str | None:
    try:
        url = source.ask(picture, {"overlay": True, "target": target})["explanations"][0]["overlay"]
    except CamserveError:  # the whole picture may be more than an answer may hold
        return None
    return thumbnail(io.BytesIO(base64.b64decode(url.partition(",")[2])), THUMB)


def write_page(file: Path, summary: Mapping[str, Any], cards: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report of a summary (`outcome.summarise`) and of the pictures on which the two agree least."""
    style = "".join(path.read_text("utf-8") for path in (HERE.parent / "gallery.css", HERE / "page.css"))
    script = (HERE / "page.js").read_text("utf-8")
    shown = {name: value for name, value in summary.items() if name != "rows"}
    meanings = {limit.name: limit.meaning for limit in LIMITS}
    parts = {
        "policy": write_policy(style, [script]),
        "style": style,
        "report": write_script_json({**shown, "meanings": meanings, "cards": cards}),
        "script": script,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(fill((HERE / "page.html").read_text("utf-8"), parts), "utf-8")
