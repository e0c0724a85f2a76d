"""Unpacks an archive once on a node, whatever the number of its replicas, into a folder that is named by its digest."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from camserve.core.errors import ArchiveError
from camserve.pipeline.archive import Archive, extract, read_archive

VARIABLE = "CAMSERVE_UNPACKED"
"""Names the folder that holds unpacked archives; otherwise it is the user's own below the system's folder for temporary files."""

BLOCK = 2**20
PAUSE = 0.05
"""Seconds after which a process looks again whether another has unpacked an archive."""
UNUSED = 3600.0
"""Seconds after which an archive that no process holds is removed: a replica of it may be about to start."""


def find_digest(path: Path) -> str:
    """Return the SHA-256 of an archive's file, in hexadecimal; of a folder, that of its path and manifest.

    Raises:
        ArchiveError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            digest.update(str(path.resolve()).encode() + (path / "MAR-INF" / "MANIFEST.json").read_bytes())
            return digest.hexdigest()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise ArchiveError(f"cannot read the archive {path}: {error.strerror}; every node needs it at this path") from error
    return digest.hexdigest()


@contextmanager
def unpack_once(path: Path, digest: str) -> Iterator[Archive]:
    """Unpack an archive unless this node has it, and hold it while it is used; what nobody holds is removed.

    Args:
        digest: of the archive that is meant (`find_digest`).

    Raises:
        ArchiveError: the file is another one, is no archive, or its folder cannot be written.
    """
    if path.is_dir():
        yield read_archive(path.resolve())
        return
    folder = _find_folder()
    target = folder / digest
    held = os.open(folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            fcntl.flock(held, fcntl.LOCK_SH)  # as all do that use it
            if target.exists():
                break
            fcntl.flock(held, fcntl.LOCK_UN)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another unpacks it, or has, and then holds it for as long as it serves
                time.sleep(PAUSE)
                continue
            if not target.exists():
                _unpack(path, digest, target)
        os.utime(held)
        _remove_unused(folder)
        yield read_archive(target)
    finally:
        os.close(held)


def _find_folder() -> Path:
    """Return the folder of unpacked archives, which only this user may write."""
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"camserve-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=bool(given), exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ArchiveError(f"cannot write {folder}: {error.strerror}; name a folder that can be written in {VARIABLE}") from error
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ArchiveError(f"{folder} may be written by others; name a folder of this user's own in {VARIABLE}")
    return folder


def _unpack(path: Path, digest: str, target: Path) -> None:
    """Unpack beside the target, and rename at the end, so that a folder with its name is whole; its lock is held."""
    if find_digest(path) != digest:
        raise ArchiveError(f"{path} is not the archive that was deployed: on this node its content is another; copy it anew")
    beside = _beside(target)
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        beside.mkdir(mode=0o700)
        extract(path, beside.resolve()).rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.unpacking")


def _remove_unused(folder: Path) -> None:
    """Remove archives that no process holds, nor held lately."""
    for lock in folder.glob("*.lock"):
        with suppress(OSError):  # it is held
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(descriptor).st_mtime < UNUSED:
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for each in (folder / lock.stem, _beside(folder / lock.stem)):
                    shutil.rmtree(each, ignore_errors=True)
            finally:
                os.close(descriptor)
