"""The latest unusual pictures, for a dashboard: as rows, and as one sheet."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from camserve.core.geometry import Rect
from camserve.monitoring.evidence.names import Entry
from camserve.monitoring.evidence.reading import list_entries, read_records
from camserve.monitoring.evidence.records import Record
from camserve.monitoring.evidence.stores import Store
from camserve.pictures.render import draw_overlay
from camserve.tools.watching.evidence.kept import scale_view
from camserve.tools.watching.evidence.periods import Period

LATEST = 12
"""How many there are."""
BACK = "2d"
"""How long ago they may be, where no time is asked for."""
TILE, ACROSS, GAP = 200, 6, 8


def list_latest(store: Store, folder: str, period: Period, count: int = LATEST) -> list[Entry]:
    """Lists the last records of a model in a time that are kept because they are unusual, the newest first."""
    entries = list_entries(store, folder, period.since, period.until)
    return [entry for entry in reversed(entries) if set(entry.reasons) - {"sample"}][:count]


def draw_latest(store: Store, entries: list[Entry]) -> bytes:
    """Draws records beside each other, each heatmap over its picture, as JPEG."""
    tiles = [draw_record(record) for record in read_records(store, entries)]
    rows = max(1, -(-len(tiles) // ACROSS))
    sheet = Image.new("RGB", (ACROSS * (TILE + GAP) + GAP, rows * (TILE + GAP) + GAP), (244, 245, 247))
    for place, tile in enumerate(tiles):
        left, top = (GAP + each * (TILE + GAP) for each in (place % ACROSS, place // ACROSS))
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return file.getvalue()


def draw_record(record: Record) -> Image.Image:
    """Draws a record's heatmap over its picture, at most `TILE` wide and high; on a plate where no picture was kept."""
    if record.picture.kind == "none":
        picture = Image.new("RGB", (TILE, TILE), (128, 128, 128))
    else:
        with Image.open(io.BytesIO(record.picture.jpeg)) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((TILE, TILE))
    view = scale_view(record.view, record.image, picture.size) or [0, 0, *picture.size]
    drawn = draw_overlay(np.asarray(picture), record.heatmap, Rect(*view), "viridis", 0.5)
    return Image.fromarray(drawn)
