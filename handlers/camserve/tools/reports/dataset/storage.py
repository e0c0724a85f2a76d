"""Files wherever they are: on this machine, in an object store, or behind any file system that pyarrow or fsspec knows."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from camserve.tools.console import ToolError
from camserve.tools.reports.pictures import describe_kind

UNFINISHED = "_unfinished"
"""The folder in which files are written before they get their name."""

PIECE = 4 * 2**20
"""Bytes that are read at once."""

WITHOUT_FOLDERS = ("s3", "gcs")
"""Object stores, in which a folder is but a part of names."""


@dataclass(frozen=True)
class Place:
    """A file or a folder.

    Attributes:
        system: the file system.
        path: in it.
        root: the path, in it, of what `prefix` names: `bucket`.
        prefix: the beginning of its URI: `s3://bucket`; "" on this machine.
        query: what its URI says of the file system itself (`endpoint_override=...`).
    """

    system: Any
    path: str
    root: str = ""
    prefix: str = ""
    query: str = ""

    def __str__(self) -> str:
        return self.prefix + self.path.removeprefix(self.root)

    def __truediv__(self, name: str) -> Place:
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def at(self, path: str) -> Place:
        """Return another place in the same file system."""
        return replace(self, path=path)

    @property
    def local(self) -> Path | None:
        """Where it is on this machine; None: elsewhere."""
        return Path(self.path) if isinstance(self.system, fs.LocalFileSystem) else None

    @property
    def kind(self) -> Any:
        """What is there: `fs.FileType.File`, `Directory`, `NotFound` or `Unknown`."""
        return self.system.get_file_info(self.path).type

    def read(self, most: int | None = None) -> bytes:
        """Read a file; of one that is larger than `most` bytes, only so many and one more.

        Raises:
            OSError: it cannot be read.
        """
        if self.local is not None:  # whose name may be no Unicode
            kind = describe_kind(self.local) if self.local.exists() else None
            if kind is not None:
                raise OSError(errno.EINVAL, f"expected a file, got {kind}")  # reading a pipe would wait without end
            with self.local.open("rb") as file:
                return _read_up_to(file, most)
        with self.system.open_input_stream(self.path, compression=None) as stream:
            return _read_up_to(stream, most)

    def names(self) -> list[str]:
        """Return the names of the files in a folder; none where there is no such folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return [each.base_name for each in self.system.get_file_info(selector) if each.type == fs.FileType.File]

    def remove(self) -> None:
        """Delete a folder with all that is in it; do nothing where there is none."""
        if self.kind == fs.FileType.Directory:
            self.system.delete_dir(self.path)


def _read_up_to(stream: Any, most: int | None) -> bytes:
    """Read a stream in pieces: asked for more than there is, some set aside memory for all of it."""
    pieces, size = [], 0
    while most is None or size <= most:
        piece = bytes(stream.read(PIECE if most is None else min(PIECE, most + 1 - size)))
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def write_whole(folder: Place, name: str) -> Iterator[Any]:
    """Open a file to be written, which gets its name in one step when the block has ended; before, there is none of it.

    Whoever is killed meanwhile leaves the file in the folder `UNFINISHED`, which nobody reads.
    """
    unfinished = folder / UNFINISHED / f"{uuid.uuid4().hex}-{name.rpartition('/')[2]}"
    if folder.system.type_name not in WITHOUT_FOLDERS:
        for each in (unfinished.path, (folder / name).path):
            folder.system.create_dir(each.rpartition("/")[0], recursive=True)
    with folder.system.open_output_stream(unfinished.path, compression=None) as stream:
        yield stream
    commit(unfinished, folder / name)


def commit(unfinished: Place, finished: Place) -> None:
    """Give a file that is written its name, in place of one that has it. An object store copies it, which is one step too."""
    if unfinished.local is not None:
        descriptor = os.open(unfinished.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # else a machine that loses power could keep the name and lose what is in the file
        finally:
            os.close(descriptor)
        unfinished.local.replace(finished.path)
        return
    finished.system.move(unfinished.path, finished.path)


def open_place(name: str) -> Place:
    """Open what a user names: a path on this machine, or a URI such as `s3://bucket/folder?endpoint_override=...`.

    Raises:
        ToolError: nothing that is installed knows such a URI, or it is wrong.
    """
    uri, _, query = name.partition("?") if "://" in name else (name, "", "")
    return open_named(uri.rstrip("/") if "://" in name and uri.partition("://")[2].strip("/") else uri, query)


def open_named(name: str, query: str = "") -> Place:
    """Open a path, or a URI as `str(place)` writes it; `query` is the place's.

    Raises:
        ToolError: as `open_place`.
    """
    scheme, mark, rest = name.partition("://")
    if not mark or scheme == "file":
        return Place(fs.LocalFileSystem(), str(Path(rest.removeprefix("localhost") if mark else name).absolute()))
    authority, _, inside = rest.partition("/")
    prefix = f"{scheme}://{authority}"
    system, root = _open_system(prefix, query)
    return Place(system, f"{root}/{inside}" if inside else root, root, prefix, query)


@lru_cache(maxsize=64)
def _open_system(root: str, query: str) -> tuple[Any, str]:
    """Open a file system by the URI of its root; return it, and the root's path in it, without a `/` at its end."""
    try:
        system, path = fs.FileSystem.from_uri(f"{root}/?{query}" if query else root)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as fault:
        return _open_with_fsspec(root, fault)
    except OSError as error:
        raise ToolError(f"{root} cannot be opened: {error}") from error
    return system, str(path).rstrip("/")


def _open_with_fsspec(root: str, fault: Exception) -> tuple[Any, str]:
    scheme = root.partition("://")[0]
    try:
        import fsspec  # noqa: PLC0415 only file systems that pyarrow does not have need it

        system, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise ToolError(
            f"{root}: expected a path, or a URI that pyarrow or fsspec opens (s3://, gs://, abfs://, hdfs://), got {scheme}://: "
            f"{fault}; {error}"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), str(path).rstrip("/")
