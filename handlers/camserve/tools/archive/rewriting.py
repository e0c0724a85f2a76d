"""Rewrites one file of an archive, and leaves everything else as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from camserve.core.text import in_one_line
from camserve.tools.console import ToolError


def check_rewritable(archive: Path, name: str, room: int) -> None:
    """Finds out beforehand what would keep a file from being put into an archive.

    Args:
        archive: the archive, which need not exist.
        name: of the file.
        room: bytes that it may have.

    Raises:
        ToolError: it is of a kind that cannot be changed, nothing can be written beside it, or there is no room for a second one.
    """
    if not archive.exists():
        return
    if archive.is_file() and not zipfile.is_zipfile(archive):
        raise ToolError(f"{archive} cannot be rewritten: expected a .mar (a zip archive) or a folder, got a file of another kind")
    target = _target(archive, name)
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", suffix=".part", dir=target.parent):
            free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise ToolError(f"{archive} cannot be rewritten: in {target.parent}: {name_fault(error)}") from error
    needed = (0 if archive.is_dir() else target.stat().st_size) + room
    if free < needed:
        raise ToolError(f"{archive} cannot be rewritten: {needed} bytes are needed in {target.parent}, and {free} are free")


def put_file(archive: Path, name: str, text: str) -> None:
    """Writes a file into an archive, in place of one of that name; everything else stays as it is, byte for byte.

    The new archive is written beside the old one and then takes its place, so nobody ever sees half of it. Where the archive is
    a link, what it points to is rewritten, and the link stays.
    """
    target = _target(archive, name)
    handle, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    try:
        if archive.is_dir():
            Path(part).write_text(text, "utf-8")
        else:
            _copy(archive, Path(part), name, text)
        if target.exists():
            shutil.copymode(target, part)
        else:
            Path(part).chmod(0o644)
        Path(part).replace(target)
    finally:
        Path(part).unlink(missing_ok=True)


def _target(archive: Path, name: str) -> Path:
    """Returns the file that is replaced: the archive, or one in the folder that it is; never a link."""
    return (archive / name if archive.is_dir() else archive).resolve()


def _copy(archive: Path, part: Path, name: str, text: str) -> None:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(part, "w") as target:
        target.comment = source.comment
        for member in source.infolist():
            if member.filename == name:
                continue
            with source.open(member) as reader, target.open(member, "w", force_zip64=member.file_size > 1 << 30) as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        target.writestr(name, text, zipfile.ZIP_DEFLATED)


def name_fault(error: Exception) -> str:
    """Returns the system's own words for an error, without the name of a temporary file."""
    return (isinstance(error, OSError) and error.strerror) or in_one_line(error)
