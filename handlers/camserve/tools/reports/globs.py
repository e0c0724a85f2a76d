"""Finds the files that a glob stands for. Python's own goes round in loops of links, and finds what is in them forty times."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path


def expand(pattern: str) -> list[Path]:
    """Finds what a glob stands for, in order: `*`, `?` and `[...]` inside a name, `**` for all folders below.

    Hidden names only match where the pattern's begins with a dot. `**` also looks into linked folders, into each folder once.
    """
    path = Path(pattern)
    start = Path(path.anchor)
    return sorted(dict.fromkeys(_match(start, path.parts[len(start.parts) :])))


def _match(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        if folder.exists():
            yield folder
        return
    name, rest = parts[0], parts[1:]
    if name == "**":
        for below in _folders(folder):
            yield from _match(below, rest or ("*",))
    elif any(sign in name for sign in "*?["):
        for each in _list(folder):
            if fnmatch.fnmatch(each, name) and (name.startswith(".") or not each.startswith(".")):
                yield from _match(folder / each, rest)
    else:
        yield from _match(folder / name, rest)


def _folders(start: Path) -> Iterator[Path]:
    """Finds a folder and all below it, each once: under its own name where it has one here, else under a link's."""
    seen: set[tuple[int, int]] = set()
    starts = [start]
    while starts:
        links: list[Path] = []
        for begin in starts:
            for folder, names, _ in os.walk(begin):
                try:
                    status = Path(folder).stat()
                except OSError:
                    continue
                if (status.st_dev, status.st_ino) in seen:
                    names.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                names[:] = sorted(name for name in names if not name.startswith("."))
                links += [path for name in names if (path := Path(folder, name)).is_symlink()]
                yield Path(folder)
        starts = links


def _list(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir()]
    except OSError:
        return []
