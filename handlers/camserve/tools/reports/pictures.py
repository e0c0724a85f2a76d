"""The pictures that a report is about: those that paths stand for, and small copies for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from camserve.tools.console import ToolError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
"""What is taken of a folder. A file that is named is always taken."""


def list_folder(folder: Path) -> list[Path]:
    """Lists the pictures in a folder and in all folders below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def list_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Lists the files given, and the pictures in the folders given.

    Raises:
        ToolError: there is nothing of that name.
    """
    for path in paths:
        if path.is_dir():
            yield from list_folder(path)
        elif path.is_file():
            yield path
        else:
            raise ToolError(f"there is no picture and no folder {path}")


def thumbnail(picture: Path | IO[bytes], side: int) -> str:
    """Encodes a small copy, at most `side` pixels wide and high, as a data URL (WebP).

    Raises:
        OSError: the file is gone, or is no picture.
    """
    file = io.BytesIO()
    with Image.open(picture) as opened:
        opened.thumbnail((side, side))
        opened.convert("RGB").save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
