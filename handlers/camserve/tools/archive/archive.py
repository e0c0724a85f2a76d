"""Opens an archive for the tools, and loads its handler into this process as TorchServe does."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camserve.core.errors import ArchiveError
from camserve.pipeline.archive import Archive, unpack
from camserve.tools.archive.fresh import worker
from camserve.tools.archive.fresh.modules import drop, place, top_modules
from camserve.tools.archive.fresh.worker import Response, Row, ask, handler_of
from camserve.tools.console import ToolError

__all__ = ["Archive", "Response", "Row", "ask", "digest_archive", "face_of", "handler_of", "load_service", "open_archive"]

if TYPE_CHECKING:
    from camserve.pipeline.model import Model

SHARED = ("camserve", "gradcam_handler")
"""Modules that this process keeps, where it has them already: the archive holds the same ones."""


MANIFEST = "MAR-INF/MANIFEST.json"


@contextmanager
def open_archive(path: Path | str) -> Iterator[Archive]:
    """Unpack an archive (`.mar`, `.tar.gz`) into a folder that is removed afterwards; a folder is taken as it is.

    Raises:
        ToolError: no archive, a damaged one, or one that would write outside its folder.
    """
    unpacking = unpack(path)
    try:
        archive = unpacking.__enter__()
    except ArchiveError as error:
        raise ToolError(str(error)) from error
    try:
        yield archive
    finally:
        _forget(archive.directory)
        unpacking.__exit__(None, None, None)


def digest_archive(archive: Archive, without: Collection[str] = ()) -> str:
    """Return `sha256:...` of an unpacked archive's files, their names and its manifest, but not of when it was made.

    `without` names files that do not count.
    """
    from camserve.pipeline.loading import digest_file  # noqa: PLC0415 brings torch, which clients do without

    digest = hashlib.sha256()
    for path in sorted(archive.directory.rglob("*")):
        name = path.relative_to(archive.directory)
        if not path.is_file() or "__pycache__" in name.parts or name.as_posix() in (MANIFEST, *without):
            continue
        digest.update(f"{name.as_posix()}\n{digest_file(path)}\n".encode("utf-8", "surrogateescape"))
    kept = {key: value for key, value in archive.manifest.items() if key != "createdOn"}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"


def load_service(directory: Path | str) -> Any:
    """Load the unpacked archive's handler into TorchServe's own `ts.service.Service`, in this process, on the CPU.

    `camserve` and its handler are those of this process; everything else is the archive's own, even where another archive
    had a module of that name. Ask it with `ask`.
    """
    importlib.import_module("gradcam_handler")  # ours is kept: an archive's copy is never loaded in its place
    directory = Path(directory).resolve()
    drop(top_modules(directory).difference(SHARED))
    sys.path[:] = [str(directory), *(each for each in sys.path if each != str(directory))]
    return worker.load_service(directory)


def face_of(service: Any) -> Model | None:
    """Return the model behind a loaded handler of ours; None where the handler is another, or of an older release."""
    face: Model | None = getattr(handler_of(service), "face", None)
    return face


def _forget(directory: Path) -> None:
    """Undo what loading from `directory` left in this process."""
    if str(directory) in sys.path:
        sys.path.remove(str(directory))
    loaded = top_modules(directory).intersection(sys.modules)
    drop({name for name in loaded if place(sys.modules[name]).is_relative_to(directory)})
