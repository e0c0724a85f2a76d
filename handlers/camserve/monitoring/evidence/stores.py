"""Where evidence lies: in a folder of this machine, or in an object store that fsspec opens. Paths in a store have `/`."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
UNFINISHED = ".unfinished-"
"""How the names of files begin that are being written; nobody lists them."""
FORGOTTEN = 600.0
"""Seconds after which an unfinished file is one that nobody goes on writing: its worker was killed."""
LOCK = ".lock"

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of the package that brings what opens a scheme."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}},
}
"""What a file system is opened with, so that a dead store is told as such before long."""

Listed = tuple[str, int]
"""A file's name and its bytes."""


class StoreError(ValueError):
    """A store that nothing here can open; the message says what to install, in one line."""


class Store(Protocol):
    """Files by their paths. What a method raises is an OSError, or whatever an object store's package raises.

    Attributes:
        to: as it was named.
    """

    to: str

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted; none where there is no such folder."""
        ...

    def list_files(self, folder: str) -> list[Listed]:
        """Return names and sizes of the finished files in a folder, sorted; none where there is no such folder."""
        ...

    def read(self, path: str) -> bytes:
        """Return what a file holds; raises FileNotFoundError where there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all, in place of one of its name; make its folder."""
        ...

    def delete(self, path: str) -> bool:
        """Delete a file; return whether there was one."""
        ...

    def lock(self) -> AbstractContextManager[object]:
        """Keep other processes of this machine from choosing at the same time what is to be kept."""
        ...


class Folder:
    """A folder of this machine. Nobody but the user that the worker runs as can read what is in it."""

    def __init__(self, root: Path) -> None:
        self.to = str(root)
        self._root = root

    def list_folders(self, folder: str = "") -> list[str]:
        """As `Store`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._root / folder) as found:
            return sorted(each.name for each in found if not each.name.startswith(".") and each.is_dir(follow_symlinks=False))
        return []

    def list_files(self, folder: str) -> list[Listed]:
        """As `Store`; unfinished files that nobody goes on writing are deleted."""
        listed = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._root / folder) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):  # another process deletes too
                    about = each.stat(follow_symlinks=False)
                    if each.name.startswith(UNFINISHED) and time.time() - about.st_mtime > FORGOTTEN:
                        Path(each.path).unlink()
                    elif not each.name.startswith(".") and stat.S_ISREG(about.st_mode):
                        listed.append((each.name, about.st_size))
        return sorted(listed)

    def read(self, path: str) -> bytes:
        """As `Store`."""
        return (self._root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """As `Store`: under another name first, so that who is killed or has no room leaves nothing under this one.

        Raises:
            OSError: the disk is full, say, or the folder belongs to somebody else.
        """
        place = self._root / path
        self._make(place.parent)
        unfinished = place.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            with os.fdopen(os.open(unfinished, flags, PRIVATE_FILE), "wb") as file:
                file.write(data)
            unfinished.replace(place)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise

    def delete(self, path: str) -> bool:
        """As `Store`; a folder that is empty then goes too."""
        place = self._root / path
        try:
            place.unlink()
        except FileNotFoundError:
            return False
        with contextlib.suppress(OSError):  # others lie in it
            place.parent.rmdir()
        return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """As `Store`; held by the system, so a process that is killed lets go of it. Not on Windows."""
        self._make(self._root)
        try:
            fcntl: Any = importlib.import_module("fcntl")
        except ImportError:
            yield
            return
        descriptor = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make(self, folder: Path) -> None:
        """Make folders that nobody else can look into; those below the root that are not so are made so.

        The root itself may be somebody's choice: what lies in it is private all the same.

        Raises:
            OSError: one of them is a link, or belongs to somebody else.
        """
        if not self._root.is_dir():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            self._root.chmod(PRIVATE_FOLDER)
        inside = folder.relative_to(self._root).parts
        for depth in range(len(inside)):
            each = self._root.joinpath(*inside[: depth + 1])
            each.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            about = each.lstat()
            if not stat.S_ISDIR(about.st_mode):
                raise NotADirectoryError(f"{each} is no folder, or a link to one")
            if stat.S_IMODE(about.st_mode) != PRIVATE_FOLDER:
                each.chmod(PRIVATE_FOLDER)


class ObjectStore:
    """A file system of fsspec's, opened when it is first used: some look for credentials over the network."""

    def __init__(self, url: str) -> None:
        self.to = url
        self._scheme = url.partition("://")[0]
        self._opened: tuple[Any, str] | None = None

    def list_folders(self, folder: str = "") -> list[str]:
        """As `Store`."""
        return sorted(name for name, about in self._list(folder) if about["type"] == "directory" and not name.startswith("."))

    def list_files(self, folder: str) -> list[Listed]:
        """As `Store`."""
        found = self._list(folder)
        return sorted((name, int(about["size"] or 0)) for name, about in found if about["type"] == "file" and name[:1] != ".")

    def read(self, path: str) -> bytes:
        """As `Store`."""
        system, root = self._system()
        return bytes(system.cat_file(f"{root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        """As `Store`: one put, which is there whole or not at all."""
        system, root = self._system()
        system.pipe_file(f"{root}/{path}", data)

    def delete(self, path: str) -> bool:
        """As `Store`."""
        system, root = self._system()
        try:
            system.rm_file(f"{root}/{path}")
        except FileNotFoundError:
            return False
        return True

    def lock(self) -> AbstractContextManager[object]:
        """As `Store`: there is none, so several workers may each keep what there was room for once."""
        return contextlib.nullcontext()

    def _list(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        system, root = self._system()
        place = f"{root}/{folder}".rstrip("/")
        system.invalidate_cache()
        try:
            found = system.ls(place, detail=True)
        except FileNotFoundError:
            return []
        named = [(str(each["name"]).rstrip("/").rpartition("/")[2], each) for each in found]
        return [(name, each) for name, each in named if name and str(each["name"]).rstrip("/") != place]

    def _system(self) -> tuple[Any, str]:
        if self._opened is None:
            core = importlib.import_module("fsspec.core")
            system, root = core.url_to_fs(self.to, **OPTIONS.get(self._scheme, {}))
            self._opened = system, str(root).rstrip("/")
        return self._opened


def open_store(to: str) -> Store:
    """Open a folder, or what a URL names. Nothing is made and nobody is connected to yet.

    Raises:
        StoreError: nothing that is installed opens such a URL.
    """
    scheme, mark, rest = to.partition("://")
    if not mark or scheme == "file":
        return Folder(Path(rest if mark else to))
    extra = f"pip install 'camserve[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "the package that fsspec names for it"
    try:
        importlib.import_module("fsspec").get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{scheme}://: cannot be opened here ({error}); it needs {extra}") from error
    return ObjectStore(to)


def hide_secrets(to: str) -> str:
    """Return where a store is, as it may be shown: without a user, a password or a query that its URL may hold."""
    scheme, mark, rest = to.partition("://")
    if not mark:
        return to
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
