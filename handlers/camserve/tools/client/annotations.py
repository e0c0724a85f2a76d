"""Areas that people marked in pictures: a box or a mask for each, by the pictures' names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from camserve.core.text import join_names, show
from camserve.pictures.files.mask import spell_area
from camserve.tools.console import ToolError

Area = list[float] | str
"""A box `[left, top, right, bottom]` in the picture's pixels, or a mask: a PNG in base64."""

ABOUT = (
    "JSON with an area for each picture, by its file's name or the end of its path: a box in its pixels "
    '{"cat.jpg": [left, top, right, bottom]}, or a mask, a PNG beside the JSON {"cat.jpg": "masks/cat.png"}'
)
"""What the file holds, for the help of commands."""


class Annotations:
    """The areas of a file.

    Raises:
        ToolError: it cannot be read, or holds anything else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            held = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ToolError(f"{path}: expected {ABOUT}; it cannot be read: {error}") from None
        if not isinstance(held, dict) or not held:
            raise ToolError(f"{path}: expected {ABOUT}, got {show(held)}")
        self._held: Mapping[str, Any] = held

    def match(self, pictures: Iterable[Path]) -> dict[Path, Area]:
        """Find the areas of those pictures that have one.

        Raises:
            ToolError: a name stands for several pictures, a picture has several, none has any, or a mask is not there.
        """
        found: dict[Path, str] = {}
        stands: dict[str, Path] = {}
        for picture in pictures:
            for name in self._names_of(picture):
                if name in stands or picture in found:
                    both = f"{stands.get(name, picture)} and {picture}" if name in stands else f"{found[picture]} and {name}"
                    raise ToolError(f"{self._path}: which is which? {both}; name pictures by more of their paths")
                found[picture], stands[name] = name, picture
        if not found:
            raise ToolError(f"{self._path}: it names none of the pictures, only {join_names(self._held, 3, show)}")
        return {picture: self._read(name) for picture, name in found.items()}

    def _names_of(self, picture: Path) -> list[str]:
        parts = picture.parts
        ends = {str(PurePath(*parts[start:])) for start in range(len(parts))} | {"/".join(parts[-1:])}
        return [name for name in ends if name in self._held]

    def _read(self, name: str) -> Area:
        value = self._held[name]
        try:
            return spell_area(self._path.parent / value if isinstance(value, str) else value)
        except (OSError, TypeError, ValueError) as error:
            raise ToolError(f"{self._path}: {name}: expected a box or a mask's file, got {show(value)} ({error})") from None
