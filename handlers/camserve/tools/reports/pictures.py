"""The pictures that a report is about: those that paths stand for, and small copies for a page."""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from PIL import Image

from camserve.core.errors import require
from camserve.core.text import join_names
from camserve.tools.console import ToolError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
"""What is taken of a folder. A file that is named is always taken."""

Say = Callable[[str], None]
"""Tells the user a line."""


class LeftOut:
    """What a folder holds and is not looked at, by its kind."""

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}

    def add(self, kind: str, path: Path) -> None:
        """Notes one of them."""
        self._paths.setdefault(kind, []).append(path)

    def tell(self, say: Say) -> None:
        """Says, in a line for each kind, how many there are and where."""
        for kind, paths in self._paths.items():
            mend = "; name it, or a glob, to have what is in it" if kind == LINKED else ""
            say(f"left out ({kind}): {join_names(paths, 3)}{mend}")


LINKED = "a link to a folder"
MANIFEST = "_manifest.json"
"""By which a folder of `explain_dataset` is known."""


def list_folder(folder: Path, say: Say | None = None) -> list[Path]:
    """Lists the pictures in a folder and in all folders below it, by name.

    Args:
        say: told of linked folders, which could lead anywhere, and of whatever else is neither file nor folder: none is opened.
    """
    return sorted(walk_folder(folder, say))


def walk_folder(folder: Path, say: Say | None = None) -> Iterator[Path]:
    """Finds what `list_folder` lists, one folder after the other."""
    left_out = LeftOut()

    def note(error: OSError) -> None:
        left_out.add(f"a folder that cannot be read: {error.strerror}", Path(error.filename))

    for parent, folders, files in os.walk(folder, onerror=note):
        folders.sort()
        for name in folders:
            if Path(parent, name).is_symlink():
                left_out.add(LINKED, Path(parent, name))
        for path in (Path(parent, name) for name in sorted(files)):
            picture = path.suffix.lower() in SUFFIXES
            kind = describe_kind(path)
            if kind is None and picture:
                yield path
            elif kind is not None and (picture or not path.is_symlink()):
                left_out.add(kind, path)
    if say is not None:
        left_out.tell(say)


def describe_kind(path: Path) -> str | None:
    """Names what a path that is no folder is, where it is no file: reading a pipe would wait without end. None for a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if path.is_symlink() else "a file that cannot be looked at"
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode))


def list_pictures(paths: Iterable[Path], say: Say | None = None) -> Iterator[Path]:
    """Lists the files given, and the pictures in the folders given.

    Args:
        say: as `list_folder` takes it.

    Raises:
        ToolError: there is nothing of that name, or it is neither a file nor a folder.
    """
    for path in paths:
        if path.is_dir():
            yield from list_folder(path, say)
        elif path.is_file():
            yield path
        elif path.exists():
            raise ToolError(f"{path}: expected a file or a folder, got {describe_kind(path)}")
        else:
            raise ToolError(f"there is no picture and no folder {path}")


def find_rows(names: Sequence[str], most: int = 1) -> list[str]:
    """Returns the folders of `explain_dataset` that are named in place of pictures; none where pictures are.

    Raises:
        ToolError: pictures are named beside them, or more than `most` folders are.
    """
    folders = [name for name in names if "://" in name or Path(name, MANIFEST).is_file()]
    if folders and (len(folders) < len(names) or len(folders) > most):
        raise ToolError(
            f"{folders[0]} holds rows of a data set; expected at most {most} such folder{'s' * (most > 1)} and no pictures "
            f"beside, got {len(names)} names"
        )
    if folders:
        require("reading a data set's rows", "ray", "pyarrow")
    return folders


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
